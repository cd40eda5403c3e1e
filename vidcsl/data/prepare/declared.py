"""What a video file says of its own length, to notice a download that was cut off.

A decoder takes the end of a cut file for the end of the video: it reads shorter, without an error.
"""

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

# Headers are off by a few frames in sound files, too: UCF101's by up to six.
FORGIVEN_FRAMES, FORGIVEN_SHARE = 8, 0.05


def declared_frames(
    container: str, *, frames: int, duration: float, shown: float, read: int
) -> int:
    """How many frames a file declares; 0: it does not say.

    Args:
        container: FFmpeg's name of the format.
        frames: of the header; 0: none.
        duration: seconds of the header, of the video alone; 0: none.
        shown: seconds from the first frame that was read to the end of the last.
        read: how many frames were read.
    """
    if "mp4" in container:  # an edit list may leave out any part; a cut file does not open
        return 0
    if frames:
        return frames
    # By time and not by rate: where the rate varies, its average is a guess.
    return round(read * duration / shown) if duration > 0 and shown > 0 else 0


def falls_short(read: int, declared: int) -> bool:
    """Whether more frames are missing than a careless header explains."""
    return declared - read > max(FORGIVEN_FRAMES, FORGIVEN_SHARE * declared)


def bytes_missing(path: Path) -> bool:
    """Whether a file ends before its declared size (AVI, Matroska) or its end mark (GIF)."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(0)
        check: dict[bytes, Callable[[BinaryIO, int], bool]] = {
            b"RIFF": _riff,
            b"\x1a\x45\xdf\xa3": _matroska,
            b"GIF8": _gif,
        }
        return start in check and check[start](file, size)


def _riff(file: BinaryIO, size: int) -> bool:
    declared = int.from_bytes(file.read(8)[4:], "little")
    # A recorder that was switched off leaves 0 there, or the largest number.
    return 0 < declared < 2**32 - 1 and 8 + declared > size


def _matroska(file: BinaryIO, size: int) -> bool:
    """The segment, which holds all but the first element, ends behind the end of the file."""

    def number(keep_marker: bool) -> int:
        first = file.read(1)
        if not first or not first[0]:
            return -1
        length = 9 - first[0].bit_length()
        value = first[0] if keep_marker else first[0] & (0xFF >> length)
        rest = file.read(length - 1)
        all_ones = value == 0xFF >> length and rest == b"\xff" * (length - 1)
        if all_ones and not keep_marker:  # a stream, whose length was not known
            return -1
        return int.from_bytes(bytes([value]) + rest, "big")

    while (element := number(True)) >= 0:
        length = number(False)
        if element == 0x18538067:  # Segment
            return length >= 0 and file.tell() + length > size
        if length < 0:
            return False
        file.seek(length, 1)
    return False


def _gif(file: BinaryIO, size: int) -> bool:
    """Walks from block to block: a whole file has one that says that it is the last."""

    def skip_table(flags: int) -> None:
        if flags & 0x80:
            file.seek(3 * 2 ** ((flags & 7) + 1), 1)

    def skip_blocks() -> None:
        while (length := file.read(1)) not in (b"", b"\0"):
            file.seek(length[0], 1)

    header = file.read(13)
    if len(header) < 13:
        return True
    skip_table(header[10])
    while file.tell() < size:
        kind = file.read(1)
        if kind == b";":
            return False
        if kind == b"!":
            file.read(1)
            skip_blocks()
        elif kind == b",":
            descriptor = file.read(9)
            if len(descriptor) < 9:
                return True
            skip_table(descriptor[8])
            file.read(1)
            skip_blocks()
        else:  # something else: not for this check to judge
            return False
    return True
