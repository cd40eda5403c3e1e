"""Which pictures the packets of MPEG-4 (part 2) in an AVI file make, told from a few bytes.

AVI has no place for the order in which pictures are shown, so encoders pack a B-picture into the
packet of the picture that it refers to, and send a stand-in when its turn comes: a P-picture "not
coded", or a single byte. FFmpeg's decoder keeps the packed picture and decodes it in place of the
next packet (`h263dec.c`, `mpeg4videodec.c`); these are its rules, so far as they leave no doubt.
"""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

# Two bits behind the start code say of which kind a picture is.
_PICTURE = re.compile(rb"\x00\x00\x01\xb6(.)", re.DOTALL)
_PACKED = re.compile(rb"DivX\d+(?:Build|b)\d+p")
_INTRA, _PREDICTED, _BETWEEN = 0, 1, 2
# What decoders take for a stand-in, in bytes; a coded picture has a bit a macroblock or more.
_STAND_IN = 19


class Picture(NamedTuple):
    """A coded picture.

    Attributes:
        packet: number of the packet with which it is decoded.
        between: whether it is a B-picture: shown at once, and nothing refers to it.
    """

    packet: int
    between: bool


def pictures(packets: Iterable[bytes], stream: Any) -> list[Picture] | None:
    """The pictures that are decoded of a stream's packets; None where that is in doubt."""
    codec = stream.codec_context
    packed = bool(_PACKED.search(codec.extradata or b""))
    bits = math.ceil(codec.width / 16) * math.ceil(codec.height / 16)
    made, waiting = [], False
    for number, packet in enumerate(packets):
        kinds = [head[0] >> 6 for head in _PICTURE.findall(packet)]
        stands_in = _stands_in(packet, kinds, bits=bits)
        moves_up = waiting and kinds == [_BETWEEN] and len(packet) > _STAND_IN
        if waiting and (stands_in or moves_up):  # what waited is decoded, and the packet's waits
            made.append(Picture(number, between=True))
        elif not waiting and len(kinds) == 1 and len(packet) > _STAND_IN:
            made.append(Picture(number, between=kinds[0] == _BETWEEN))
        elif packed and not waiting and len(kinds) == 2 and kinds[1] == _BETWEEN != kinds[0]:
            made.append(Picture(number, between=False))
        elif waiting or not stands_in:
            return None
        waiting = moves_up or len(kinds) == 2
        if number == 0 and kinds[:1] != [_INTRA]:
            return None  # what refers to a picture before the first is not shown
    ordered = codec.has_b_frames or not any(picture.between for picture in made)
    return made if made and ordered else None


def _stands_in(packet: bytes, kinds: Sequence[int], *, bits: int) -> bool:
    if packet == b"\x7f":
        return True
    return len(packet) <= _STAND_IN and 8 * len(packet) < bits and kinds == [_PREDICTED]


def shown(made: Sequence[Picture]) -> list[int]:
    """The number of each picture's frame, where others than B-pictures are shown one later."""
    numbers, held, count = [0] * len(made), None, 0
    for place, picture in enumerate(made):
        due = place if picture.between else held
        if due is not None:
            numbers[due], count = count, count + 1
        held = held if picture.between else place
    if held is not None:
        numbers[held] = count
    return numbers
