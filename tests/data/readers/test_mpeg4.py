"""Packets of MPEG-4 in AVI by hand; `test_real_videos.py` holds the counts against full decodes."""

from types import SimpleNamespace

import pytest

from vidcsl.data.readers.mpeg4 import pictures, shown

KEY, P, B = (b"\x00\x00\x01\xb6" + bytes([kind << 6]) + bytes(40) for kind in range(3))
STAND_IN, BYTE = P[:7], b"\x7f"


def stream(*, packed=True, has_b_frames=True):
    extradata = b"\x00\x00\x01\xb2DivX503b1393p" if packed else b""
    codec = SimpleNamespace(extradata=extradata, width=320, height=240, has_b_frames=has_b_frames)
    return SimpleNamespace(codec_context=codec)


@pytest.mark.parametrize(
    ("packets", "made"),
    [
        ([KEY, P, P], [(0, False), (1, False), (2, False)]),
        ([KEY, BYTE, P + B, STAND_IN], [(0, False), (2, False), (3, True)]),
        ([KEY, P + B, B, STAND_IN], [(0, False), (1, False), (2, True), (3, True)]),
        ([KEY, P + B], [(0, False), (1, False)]),  # what waits in the end is never decoded
        ([KEY, STAND_IN, P], [(0, False), (2, False)]),
        ([KEY, P, B, B], [(0, False), (1, False), (2, True), (3, True)]),
    ],
)
def test_pictures_of_packets(packets, made):
    assert pictures(packets, stream()) == made


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
    assert pictures(packets, stream()) is None


def test_doubtful_streams_have_to_be_decoded():
    assert pictures([KEY, P + B, STAND_IN], stream(packed=False)) is None
    assert pictures([KEY, P, B], stream(has_b_frames=False)) is None


def test_b_pictures_are_shown_before_the_one_they_refer_to():
    made = pictures([KEY, P + B, B, STAND_IN, P], stream())
    assert shown(made) == [0, 3, 1, 2, 4]
