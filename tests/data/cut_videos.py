"""Files as cutting without re-encoding makes them; each frame bears its number in its pixels."""

import struct
from contextlib import suppress
from pathlib import Path

import av
import numpy as np

RATE, BITS, SIDE = 25, 7, 24
SIZE = (2 * SIDE, 4 * SIDE)  # eight squares: seven bits, and one that is always white

# Two B-pictures between others, and keyframes far apart, so that cuts fall between them.
CODECS = {
    "h264": ("libx264", {"bf": "2", "g": "25", "sc_threshold": "0", "b_strategy": "0"}),
    "h264 open": (
        "libx264",
        {"bf": "2", "g": "25", "sc_threshold": "0", "b_strategy": "0", "x264-params": "open-gop=1"},
    ),
    "hevc": (
        "libx265",
        {"x265-params": "log-level=none:keyint=25:bframes=2:scenecut=0:b-adapt=0:open-gop=0"},
    ),
    "hevc open": (
        "libx265",
        {"x265-params": "log-level=none:keyint=25:bframes=2:scenecut=0:b-adapt=0:open-gop=1"},
    ),
    "mpeg4": ("mpeg4", {"g": "25", "q": "2"}),
    "mpeg4 b": ("mpeg4", {"bf": "2", "g": "25", "q": "2"}),
    # Pictures that are only referred to ("alt-ref") need a look ahead.
    "vp9": ("libvpx-vp9", {"g": "25", "cpu-used": "8", "auto-alt-ref": "1", "lag-in-frames": "16"}),
    "vp8": ("libvpx", {"g": "25", "cpu-used": "8", "auto-alt-ref": "1", "lag-in-frames": "16"}),
}


def write_coded(path: Path, codec: str, *, frames: int) -> Path:
    """A file whose frame k shows k in binary, as white and black squares over a little noise."""
    assert frames <= 2**BITS
    name, options = CODECS[codec]
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(name, rate=RATE, options=options)
        stream.height, stream.width = SIZE
        stream.pix_fmt = "yuv420p"
        for k in range(frames):
            squares = [(k >> bit & 1) for bit in range(BITS)] + [1]
            grey = np.kron(np.reshape(squares, (2, 4)), np.ones((SIDE, SIDE))) * 180 + 30
            noisy = grey[..., None] + rng.integers(-20, 20, (*SIZE, 3))  # packets of some weight
            frame = av.VideoFrame.from_ndarray(noisy.astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def burnt(frames: np.ndarray) -> list[int]:
    """The numbers that frames [T, H, W, 3] of `write_coded` show."""
    middles = frames[:, SIDE // 2 :: SIDE, SIDE // 2 :: SIDE].mean(axis=-1).reshape(-1, 8) > 128
    assert middles[:, BITS].all()
    return (middles[:, :BITS] @ (1 << np.arange(BITS))).tolist()


def sequential(path: Path) -> list[int]:
    """The numbers of the frames that FFmpeg's decoder puts out, from the start to the end."""
    frames = []
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            with suppress(av.error.InvalidDataError):  # VP8 and VP9 before their first keyframe
                frames += [frame.to_ndarray(format="rgb24") for frame in packet.decode()]
    return burnt(np.stack(frames)) if frames else []


def cut(source: Path, target: Path, *, start: int, stop: int, from_key: bool = True) -> Path:
    """Frames start to stop, their packets copied, as `ffmpeg -ss A -i SOURCE -t B -c copy` does.

    Copying begins at the keyframe before `start`. In MP4 and MOV what lies between has times below
    zero, for which an edit list is written. Without `from_key` copying begins at `start` itself, as
    tools do that cut by size or by time alone.
    """
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        tick = int(1 / (RATE * stream.time_base))
        packets = [packet for packet in old.demux(stream) if packet.size]
        keys = [k for k, p in enumerate(packets) if p.is_keyframe and p.pts <= start * tick]
        first = keys[-1] if from_key else start
        edited = from_key and target.suffix in (".mp4", ".mov")
        zero = start * tick if edited else packets[first].dts
        for packet in packets[first:]:
            if packet.dts >= stop * tick:
                break
            packet.pts, packet.dts = packet.pts - zero, packet.dts - zero
            packet.stream = copy
            new.mux(packet)
    return target


def edit(source: Path, target: Path, *, skip: int = 0, keep: int | None = None) -> Path:
    """A copy of an MP4 or MOV file whose edit list leaves out frames at its start or end."""
    data = bytearray(source.read_bytes())
    at = data.index(b"elst") + 8
    count, length, begin, _ = struct.unpack_from(">IIiI", data, at)
    assert count == 1
    assert not data[at - 4]  # version
    with av.open(str(source)) as container:
        tick = int(1 / (RATE * container.streams.video[0].time_base))
    length = length if keep is None else keep * 1000 // RATE  # the muxer's movie clock
    struct.pack_into(">IIiI", data, at, 1, length, begin + skip * tick, 1 << 16)
    target.write_bytes(data)
    return target


def cut_family(folder: Path, *, frames: int = 80) -> dict[str, Path]:
    """Every container with every codec that it can hold, whole, cut and edited."""
    files = {}
    for codec in CODECS:
        sort = codec.replace(" ", "_")
        base = folder / f"{sort}.{'webm' if codec == 'vp8' else 'mp4'}"
        write_coded(base, codec, frames=frames)
        for suffix in (".mp4", ".mov", ".mkv", ".webm"):
            if codec[:2] != "vp" if suffix == ".webm" else codec == "vp8" and suffix != ".mkv":
                continue
            if suffix == ".mov" and codec not in ("h264", "hevc"):  # MP4 by another name
                continue
            name = f"{sort}{suffix}"
            ways = {
                "whole": {"start": 0, "stop": 10**6},
                "cut between keyframes": {"start": 33, "stop": 70},
                "cut at a keyframe": {"start": 25, "stop": 61},
                "cut without its keyframe": {"start": 33, "stop": 70, "from_key": False},
            }
            if codec.startswith("mpeg4"):  # its decoder would paint grey what is missing
                del ways["cut without its keyframe"]
            for way, how in ways.items():
                target = folder / f"{way.replace(' ', '_')}_{name}"
                files[f"{name} {way}"] = cut(base, target, **how)
            whole = files[f"{name} whole"]
            if suffix in (".mp4", ".mov") and b"elst" in whole.read_bytes():
                edits = {
                    "start": {"skip": 31},
                    "end": {"keep": 40},
                    "both": {"skip": 7, "keep": 44},
                }
                for way, how in edits.items():
                    target = folder / f"{way}_edited_{name}"
                    files[f"{name} {way} edited"] = edit(whole, target, **how)
    return files
