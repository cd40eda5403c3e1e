"""Packets of MPEG-4 in AVI by hand; `test_real_videos.py` holds the counts against full decodes."""

from types import SimpleNamespace

import pytest

from vidcsl.data.readers.frame_index import mpeg4_pictures

KEY, P, B = (b"\x00\x00\x01\xb6" + bytes([kind << 6]) + bytes(40) for kind in range(3))
STAND_IN, BYTE = P[:7], b"\x7f"


def stream(*, packed=True, has_b_frames=True):
    extradata = b"\x00\x00\x01\xb2DivX503b1393p" if packed else b""
    codec = SimpleNamespace(extradata=extradata, width=320, height=240, has_b_frames=has_b_frames)
    return SimpleNamespace(codec_context=codec)


@pytest.mark.parametrize(
    ("packets", "made"),
    [
        ([KEY, P, P], [0, 1, 2]),
        ([KEY, BYTE, P + B, STAND_IN], [0, 2, 3]),
        ([KEY, P + B, B, STAND_IN], [0, 1, 2, 3]),
        ([KEY, P + B], [0, 1]),  # what waits in the end is never decoded
        ([KEY, STAND_IN, P], [0, 2]),
        ([KEY, P, B, B], [0, 1, 2, 3]),
    ],
)
def test_pictures_of_packets(packets, made):
    assert mpeg4_pictures(packets, stream()) == made


@pytest.mark.parametrize(
    "packets",
    [
        [P, P],  # the first refers to nothing
        [KEY, P + B, P],  # no stand-in where one is due
        [KEY, P + P],
        [KEY, P + B + B],
        [KEY, b""],
        [KEY, B[:12]],  # so small a B-picture may be one
        [],
    ],
)
def test_doubtful_packets_have_to_be_decoded(packets):
    assert mpeg4_pictures(packets, stream()) is None


def test_doubtful_streams_have_to_be_decoded():
    assert mpeg4_pictures([KEY, P + B, STAND_IN], stream(packed=False)) is None
    assert mpeg4_pictures([KEY, P, B], stream(has_b_frames=False)) is None
