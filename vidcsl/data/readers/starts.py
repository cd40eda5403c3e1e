"""Which packets a decoder may begin with and give what it gives when it comes from the start.

A container's keyframe flag does not suffice: it also stands on pictures after which others still
refer to what was before. Nothing does after the pictures that are recognised here.
"""

from collections.abc import Callable
from typing import Any

from vidcsl.data.readers.units import nal_units

_H264_IDR = (5,)
_HEVC_IDR = (19, 20)
_MPEG4_PICTURE = b"\x00\x00\x01\xb6"


def is_clean_start(packet: Any, stream: Any) -> bool:
    """Whether everything that is decoded after this keyframe's packet depends on nothing before."""
    check = _CLEAN.get(stream.codec_context.name)
    return bool(packet.is_keyframe) and check is not None and check(packet, stream)


def _mpeg4(packet: Any, stream: Any) -> bool:
    # With B-frames, those right after the keyframe refer to the picture before it.
    head = bytes(packet).partition(_MPEG4_PICTURE)[2]
    intra = len(head) > 0 and head[0] >> 6 == 0
    return intra and not stream.codec_context.has_b_frames


def _h264(packet: Any, stream: Any) -> bool:
    kinds = (unit[0] & 31 for unit in nal_units(packet, stream, width_at=4))
    return next((kind for kind in kinds if 1 <= kind <= 5), None) in _H264_IDR


def _hevc(packet: Any, stream: Any) -> bool:
    kinds = (unit[0] >> 1 & 63 for unit in nal_units(packet, stream, width_at=21))
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
