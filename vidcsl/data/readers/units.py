"""The units (NAL) of H.264 and H.265 packets: what each begins with."""

from collections.abc import Iterator
from typing import Any

_HEAD = 16


def nal_units(packet: Any, stream: Any, *, width_at: int) -> Iterator[bytes]:
    """The first bytes of each unit; `width_at`: where a header says how long their prefixes are."""
    data, header = bytes(packet), stream.codec_context.extradata or b""
    if len(header) <= width_at or header[0] != 1:  # units are set apart by start codes
        yield from (unit[:_HEAD] for unit in data.split(b"\x00\x00\x01")[1:] if unit)
        return
    width, at = (header[width_at] & 3) + 1, 0
    while at + width < len(data):
        length = int.from_bytes(data[at : at + width], "big")
        yield data[at + width : at + width + min(length, _HEAD)]
        at += width + length
