"""Which H.264 pictures no other refers to, so that decoding gives the same without them.

Two bits of their units say so, and damage may flip these. But every picture carries the number of
those referred to before it (`frame_num`; ITU-T H.264, 7.4.3): where the numbers do not rise one by
one, as the bits would have it, nothing is left out, and the decoder meets the damage.
"""

from collections.abc import Sequence
from typing import Any

from vidcsl.data.readers.units import nal_units

_INTER, _IDR = 1, 5
_WITHOUT_PARAMETERS = (1, 5, 6, 9, 12)  # kinds of units, and those of slices
_REFERRED = 0x60
# Profiles whose parameters begin with those of the colours.
_WITH_COLOURS = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)


def spare_times(run: Sequence[Any], stream: Any) -> set[int]:
    """Time stamps of the packets, of a run from an IDR picture on, that may be left out."""
    width = _number_width(stream.codec_context.extradata or b"")
    spare, last = set(), 0
    for packet in run if width else ():
        units = [unit for unit in nal_units(packet, stream, width_at=4) if unit]
        slices = [unit for unit in units if unit[0] & 31 in (_INTER, _IDR)]
        if not slices:
            return set()
        number, due = _number(slices[0], width=width), (last + 1) % 2**width
        if number != (0 if slices[0][0] & 31 == _IDR else due):
            return set()
        referred = any(unit[0] & _REFERRED for unit in slices)
        last = number if referred else last
        if not referred and all(unit[0] & 31 in _WITHOUT_PARAMETERS for unit in units):
            spare.add(packet.pts)
    return spare


def _number(unit: bytes, *, width: int) -> int:
    """`frame_num` of a slice: behind its first block, its type and its parameters' number."""
    bits, at = _bits(unit[1:]), 0
    for _ in range(3):
        _, at = _golomb(bits, at)
    return int(bits[at : at + width] or "0", 2)


def _number_width(header: bytes) -> int:
    """Bits of `frame_num`, by the parameters in an MP4 file's header; 0 where that is not plain."""
    profile, bits = header[9:10], _bits(header[12:44])
    if header[:1] != b"\x01" or len(header) < 16:
        return 0
    _, at = _golomb(bits, 0)
    if profile[0] in _WITH_COLOURS:
        chroma, at = _golomb(bits, at)
        for _ in range(2):
            _, at = _golomb(bits, at)
        if chroma == 3 or bits[at + 1 : at + 2] != "0":  # separate planes; scaling matrices
            return 0
        at += 2
    return _golomb(bits, at)[0] + 4


def _bits(data: bytes) -> str:
    plain = data.replace(b"\x00\x00\x03", b"\x00\x00")
    return format(int.from_bytes(b"\x01" + plain, "big"), "b")[1:]


def _golomb(bits: str, at: int) -> tuple[int, int]:
    """An Exp-Golomb number, and where it ends; past the end of `bits` it is 0."""
    one = bits.find("1", at)
    if one < 0:
        return 0, len(bits)
    end = 2 * one - at + 1
    return int(bits[one:end], 2) - 1, end
