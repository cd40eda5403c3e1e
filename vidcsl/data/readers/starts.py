"""Which packets a decoder may begin with, or do without, and give what it gives in order.

A container's keyframe flag does not suffice: it also stands on pictures after which others still
refer to what was before. Nothing does after the pictures that are recognised here.
"""

from collections.abc import Callable, Iterator
from typing import Any

_H264_IDR = (5,)
_H264_REFERRED = 0x60  # two bits of a unit's first byte
_HEVC_IDR = (19, 20)
_MPEG4_PICTURE = b"\x00\x00\x01\xb6"


def is_clean_start(packet: Any, stream: Any) -> bool:
    """Whether everything that is decoded after this keyframe's packet depends on nothing before."""
    check = _CLEAN.get(stream.codec_context.name)
    return bool(packet.is_keyframe) and check is not None and check(packet, stream)


def is_spare(packet: Any, stream: Any) -> bool:
    """Whether no other picture refers to those of this packet, so that it may be left out."""
    if stream.codec_context.name != "h264":
        return False
    slices = [unit[0] for unit in _units(packet, stream, width_at=4) if 1 <= unit[0] & 31 <= 5]
    return bool(slices) and not any(head & _H264_REFERRED for head in slices)


def _mpeg4(packet: Any, stream: Any) -> bool:
    # With B-frames, those right after the keyframe refer to the picture before it.
    head = bytes(packet).partition(_MPEG4_PICTURE)[2]
    intra = len(head) > 0 and head[0] >> 6 == 0
    return intra and not stream.codec_context.has_b_frames


def _h264(packet: Any, stream: Any) -> bool:
    kinds = (unit[0] & 31 for unit in _units(packet, stream, width_at=4))
    return next((kind for kind in kinds if 1 <= kind <= 5), None) in _H264_IDR


def _hevc(packet: Any, stream: Any) -> bool:
    kinds = (unit[0] >> 1 & 63 for unit in _units(packet, stream, width_at=21))
    return next((kind for kind in kinds if kind < 32), None) in _HEVC_IDR


def _flag_suffices(packet: Any, stream: Any) -> bool:  # noqa: ARG001
    return True


_CLEAN: dict[str, Callable[[Any, Any], bool]] = {
    "mpeg4": _mpeg4,
    "h264": _h264,
    "hevc": _hevc,
    # Their keyframes reset the decoder, and one that is none is refused as the first packet.
    "vp8": _flag_suffices,
    "vp9": _flag_suffices,
    "libdav1d": _flag_suffices,
    "mjpeg": _flag_suffices,
}


def _units(packet: Any, stream: Any, *, width_at: int) -> Iterator[bytes]:
    """NAL units, of which the first bytes matter; `width_at`: where a header says their prefix."""
    data, header = bytes(packet), stream.codec_context.extradata or b""
    if len(header) <= width_at or header[0] != 1:  # units are set apart by start codes
        yield from filter(None, data.split(b"\x00\x00\x01")[1:])
        return
    width, at = (header[width_at] & 3) + 1, 0
    while at + width < len(data):
        length = int.from_bytes(data[at : at + width], "big")
        yield data[at + width : at + width + 1]
        at += width + length
