"""RAR files made by hand: the third version of the format, members stored without compression."""

import stat
import struct
import zlib

_MARKER = b"Rar!\x1a\x07\x00"
_ARCHIVE, _FILE, _END = 0x73, 0x74, 0x7B
_LONG_BLOCK, _UNIX = 0x8000, 3
_STORED, _NORMAL = 0x30, 0x33


def rar(members, *, links=(), method=_STORED):
    """The bytes of an archive of {name: bytes}; a name in `links` is a symbolic link to its bytes.

    With another `method` the listing is sound but the members cannot be unpacked.
    """
    files = b"".join(
        _file(name, content, link=name in links, method=method) for name, content in members.items()
    )
    return _MARKER + _block(_ARCHIVE, 0, bytes(6)) + files + _block(_END, 0x4000, b"")


def _file(name, content, *, link, method):
    mode = stat.S_IFLNK | 0o777 if link else stat.S_IFREG | 0o644
    encoded = name.encode()
    date = (46 << 25) | (11 << 21) | (24 << 16)
    fields = struct.pack(
        "<IIBIIBBHI",
        *(len(content), len(content), _UNIX, zlib.crc32(content), date),
        *(29, method, len(encoded), mode),
    )
    return _block(_FILE, _LONG_BLOCK, fields + encoded) + content


def _block(kind, flags, body):
    head = struct.pack("<BHH", kind, flags, 7 + len(body)) + body
    return struct.pack("<H", zlib.crc32(head) & 0xFFFF) + head
