"""How a file says that it is to be shown: orientation, tags of colour, shape of pixels."""

import math
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from tests.data.readers.installed import decoders
from vidcsl.data.lists import write_list
from vidcsl.data.prepare.scan import examine
from vidcsl.data.prepare.transcode import Settings, transcode
from vidcsl.data.readers import open_reader
from vidcsl.data.readers.reader import Cutter, Scaler

backends = pytest.mark.parametrize("backend", decoders())
LEVELS = np.array([[40, 90], [140, 200]])  # of the four quarters as they are stored
SIZE = (32, 48)
# (a, b, c, d) of x' = a x + c y, y' = b x + d y: every way to lay a picture on its sides.
EIGHT = [
    (*pair, 0, 0) if straight else (0, 0, *pair)
    for straight in (True, False)
    for pair in ((1, 1), (1, -1), (-1, 1), (-1, -1))
]
EIGHT = [(a, b, c, d) for a, d, b, c in EIGHT]


def write_quarters(path, *, levels=LEVELS, frames=4, **tags):
    """A file of which each quarter of a frame has a grey of its own."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "1"})
        stream.height, stream.width = SIZE
        stream.pix_fmt = "yuv420p"
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        grey = np.kron(levels, np.ones((SIZE[0] // 2, SIZE[1] // 2)))
        pixels = np.repeat(grey[..., None], 3, axis=2)
        for _ in range(frames):
            frame = av.VideoFrame.from_ndarray(pixels.astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def with_matrix(source, target, matrix):
    """A copy whose track has another display matrix (a, b, c, d)."""
    data = bytearray(source.read_bytes())
    at = data.index(b"tkhd") + 44
    a, b, c, d = (round(each * 2**16) for each in matrix)
    struct.pack_into(">9i", data, at, a, b, 0, c, d, 0, 0, 0, 2**30)
    target.write_bytes(data)
    return target


def shown(matrix, stored=LEVELS):
    """The quarters as a player shows them."""
    a, b, c, d = matrix
    out = np.zeros((2, 2), dtype=int)
    for y, x in np.ndindex(2, 2):
        horizontal, vertical = 2 * x - 1, 2 * y - 1  # -1 or 1
        across, down = a * horizontal + c * vertical, b * horizontal + d * vertical
        out[(down + 1) // 2, (across + 1) // 2] = stored[y, x]
    return out


def quarters(frame):
    height, width, _ = frame.shape
    parts = frame[: height // 2 * 2, : width // 2 * 2].reshape(2, height // 2, 2, width // 2, 3)
    return parts[:, 2:-2, :, 2:-2].mean(axis=(1, 3, 4))  # [2, 2], without the seams


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return write_quarters(tmp_path_factory.mktemp("plain") / "plain.mp4")


@backends
@pytest.mark.parametrize("matrix", EIGHT)
def test_all_eight_orientations(plain, tmp_path, matrix, backend):
    path = with_matrix(plain, tmp_path / "turned.mp4", matrix)
    height, width = SIZE if matrix[0] else SIZE[::-1]
    for short_side in (None, 16):
        with open_reader(path, backend=backend, short_side=short_side) as reader:
            scale = 1 if short_side is None else short_side / min(SIZE)
            assert (reader.height, reader.width) == (height * scale, width * scale)
            assert reader.notes == ()
            for frame in reader.read([0, 3]):
                np.testing.assert_allclose(quarters(frame), shown(matrix), atol=4)
            # The crop that training makes: the left half, and the whole.
            boxes = np.array([[0, 0, height, width // 2], [0, 0, height, width]]) * scale
            views = reader.read_crops(np.array([[0, 1], [2, 3]]), boxes.astype(int), size=16)
            left, whole = (view.transpose(1, 2, 3, 0)[0] for view in views)
            np.testing.assert_allclose(quarters(whole), shown(matrix), atol=4)
            np.testing.assert_allclose(quarters(left)[:, 0], shown(matrix)[:, 0], atol=4)


@backends
def test_a_faint_picture_is_mirrored_too(tmp_path, backend):
    """A library that does not know mirrors is hardly off where a picture is nearly even."""
    faint = np.array([[100, 104], [100, 104]])
    matrix = (-1, 0, 0, 1)
    path = with_matrix(write_quarters(tmp_path / "a.mp4", levels=faint), tmp_path / "b.mp4", matrix)
    with open_reader(path, backend=backend) as reader:
        left, right = quarters(reader.read([0])[0])[0]
        assert left > right + 2


@backends
@pytest.mark.parametrize("degrees", [1, -1, 5, 45, 89, -89, 91, 179])
def test_other_angles_are_ignored_with_a_note(plain, tmp_path, degrees, backend):
    turn = math.radians(degrees)
    matrix = (math.cos(turn), math.sin(turn), -math.sin(turn), math.cos(turn))
    path = with_matrix(plain, tmp_path / "turned.mp4", matrix)
    with open_reader(path, backend=backend) as reader:
        assert (reader.height, reader.width) == SIZE
        np.testing.assert_allclose(quarters(reader.read([1])[0]), LEVELS, atol=4)
        (note,) = reader.notes
        assert "orientation" in note
        assert "ignored" in note


def test_matrices_are_rounded_by_those_who_write_them(plain, tmp_path):
    matrix = (3 / 2**16, 1 - 2 / 2**16, -1 + 1 / 2**16, -2 / 2**16)
    with open_reader(with_matrix(plain, tmp_path / "t.mp4", matrix)) as reader:
        np.testing.assert_allclose(quarters(reader.read([0])[0]), shown((0, 1, -1, 0)), atol=4)


def test_copies_are_upright_whatever_their_originals_say(plain, tmp_path):
    names = []
    for k, matrix in enumerate([*EIGHT, (math.cos(0.1), math.sin(0.1), -math.sin(0.1), 1)]):
        names.append(f"{k}.mp4")
        with_matrix(plain, tmp_path / names[-1], matrix)
    write_list(tmp_path / "all.csv", [(name, "", "") for name in names])
    transcode(
        root=tmp_path,
        lists=[tmp_path / "all.csv"],
        out_root=tmp_path / "copies",
        out=tmp_path / "out",
        settings=Settings(short_side=16, crf=1),
        workers=1,
    )
    for name in names:
        with open_reader(tmp_path / name) as old, open_reader(tmp_path / "copies" / name) as new:
            assert new.notes == ()
            assert (new.height, new.width) == (old.height / 2, old.width / 2)
            assert new.num_frames == old.num_frames
            np.testing.assert_allclose(
                quarters(new.read([2])[0]), quarters(old.read([2])[0]), atol=4
            )


# Tags of colour -----------------------------------------------------------------------------------

# What each may be by H.273, and numbers that are reserved.
TAGS = {"color_primaries": range(23), "color_trc": range(20), "colorspace": range(16)}
MATRICES = (1, 2, 4, 5, 6, 7, 9)  # that change how colours are made, and are known to FFmpeg


@pytest.mark.parametrize("tag", TAGS)
def test_whole_frames_and_crops_agree_under_every_tag(tmp_path, tag):
    """What `prepare scan` reads, training reads too, and gets the same."""
    rng, seen = np.random.default_rng(0), {}
    pixels = np.repeat(rng.integers(0, 255, (8, 12, 3)), 4, axis=0).repeat(4, axis=1)
    for value in TAGS[tag]:
        path = tmp_path / f"{value}.mkv"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("ffv1", rate=25)
            stream.height, stream.width = SIZE
            stream.pix_fmt = "yuv444p"
            setattr(stream.codec_context, tag, value)
            for _ in range(2):
                frame = av.VideoFrame.from_ndarray(pixels.astype(np.uint8), format="rgb24")
                yuv = frame.reformat(format="yuv444p")
                setattr(yuv, tag, value)
                container.mux(stream.encode(yuv))
            container.mux(stream.encode())
        assert examine(path, "auto")["frames"] == 2
        with open_reader(path) as reader:
            whole = reader.read([1])[0]
            crop = reader.read_crops(np.array([[1]]), np.array([[0, 0, *SIZE]]), size=32)[0, :, 0]
            box = np.array([[0, 0, SIZE[0], SIZE[0]]])
            square = reader.read_crops(np.array([[1]]), box, size=SIZE[0])[0, :, 0]
        np.testing.assert_array_equal(square.transpose(1, 2, 0), whole[:, : SIZE[0]], str(value))
        seen[value] = whole, crop
    # How light was coded, and which red is meant, is left as it is: encoders see coded values.
    same = [value for value in TAGS[tag] if tag != "colorspace" or value not in (0, *MATRICES)]
    for value in same:
        for one, other in zip(seen[value], seen[2], strict=True):
            np.testing.assert_array_equal(one, other, str(value))


def test_a_matrix_that_is_not_known_is_said(tmp_path):
    path = write_quarters(tmp_path / "a.mp4", colorspace=14)
    with open_reader(path) as reader:
        assert any("colour matrix" in note for note in reader.notes)
    with open_reader(write_quarters(tmp_path / "b.mp4", colorspace=9)) as reader:
        assert reader.notes == ()


# Pixels that are not square -----------------------------------------------------------------------


@backends
@pytest.mark.parametrize("aspect", ["64:51", "1:2"])
def test_pixels_that_are_not_square(tmp_path, aspect, backend):
    path = write_quarters(
        tmp_path / "a.mp4", sample_aspect_ratio=Fraction(aspect.replace(":", "/"))
    )
    wide = round(SIZE[1] * Fraction(aspect.replace(":", "/")))
    with open_reader(path, backend=backend) as reader:  # as stored, and said so
        assert (reader.height, reader.width) == SIZE
        assert any(aspect in note and "DATA.PIXELS" in note for note in reader.notes)
    with open_reader(path, backend=backend, pixels="square") as reader:
        assert (reader.height, reader.width) == (SIZE[0], wide)
        np.testing.assert_allclose(quarters(reader.read([0])[0]), LEVELS, atol=4)
        assert reader.notes == ()
    short = min(SIZE[0], wide) // 2
    with open_reader(path, backend=backend, short_side=short, pixels="square") as reader:
        assert min(reader.height, reader.width) == short
        box = np.array([[0, 0, reader.height, reader.width]])
        whole = reader.read_crops(np.array([[0]]), box, size=16)[0, :, 0].transpose(1, 2, 0)
        np.testing.assert_allclose(quarters(whole), LEVELS, atol=4)
    turned = with_matrix(path, tmp_path / "turned.mp4", (0, 1, -1, 0))
    with open_reader(turned, backend=backend, pixels="square") as reader:
        assert (reader.height, reader.width) == (wide, SIZE[0])


def test_copies_keep_the_shape_of_pixels(tmp_path):
    write_quarters(tmp_path / "a.mp4", sample_aspect_ratio=Fraction(64, 51))
    with_matrix(tmp_path / "a.mp4", tmp_path / "b.mp4", (0, 1, -1, 0))
    write_list(tmp_path / "all.csv", [("a.mp4", "", ""), ("b.mp4", "", "")])
    transcode(
        root=tmp_path,
        lists=[tmp_path / "all.csv"],
        out_root=tmp_path / "copies",
        out=tmp_path / "out",
        settings=Settings(short_side=16),
        workers=1,
    )
    for name in ("a.mp4", "b.mp4"):
        sizes = []
        for path in (tmp_path / name, tmp_path / "copies" / name):
            with open_reader(path, short_side=64, pixels="square") as reader:
                sizes.append((reader.height, reader.width))
        assert sizes[0] == sizes[1]


def test_pictures_have_square_pixels(tmp_path):
    Image.new("RGB", (8, 6)).save(tmp_path / "1.png")
    with open_reader(tmp_path, pixels="square") as reader:
        assert (reader.height, reader.width) == (6, 8)
        assert reader.notes == ()


# The last columns ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["yuv420p", "yuv422p", "yuv444p", "nv12"])
def test_no_column_is_left_as_it_was_in_memory(form):
    """FFmpeg's quick conversion without scaling forgets up to eight columns of some widths."""
    rng = np.random.default_rng(0)

    def even_rows(height, width):
        rows = np.broadcast_to(rng.integers(0, 255, (height, 1, 1)), (height, width, 3))
        pixels = np.ascontiguousarray(rows.astype(np.uint8))
        return av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=form)

    def spoil_memory(height, width):
        noise = rng.integers(0, 255, (height, width, 3)).astype(np.uint8)
        av.VideoFrame.from_ndarray(noise, format="rgb24").reformat(format="gbrp")

    for size in range(4, 60):
        whole, crop = (np.zeros((3, 16, size), np.uint8), np.zeros((3, size, size), np.uint8))
        spoil_memory(16, size)
        Scaler(16, size).write(even_rows(16, size), whole)
        spoil_memory(size, size)
        sides = (size + 9, size + 12)
        box = (2 / sides[0], 4 / sides[1], size / sides[0], size / sides[1])
        Cutter(box, size=size).write(even_rows(*sides), crop)
        for planes in (whole, crop):
            assert (planes == planes[:, :, :1]).all(), size
