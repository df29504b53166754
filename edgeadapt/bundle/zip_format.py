"""The bytes of a ZIP archive of stored files, as a function of the files alone.

There is one archive for given names and contents: no time of day, no permissions of the day, no
compression, no comments, nothing between the files. So a bundle is the same bytes whenever it is
made, and whatever somebody changed, put in or appended shows. The format is that of PKWARE's
APPNOTE.TXT 6.3.10, sections 4.3.7 (local header), 4.3.12 (central directory) and 4.3.14 to 4.3.16
(its end); sizes and offsets beyond 32 bits are written as in 4.5.3 (ZIP64).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

LIMIT = 0xFFFFFFFF
"""The largest 32-bit number stands for "see the ZIP64 field"."""
COUNT_LIMIT = 0xFFFF
LOCAL, CENTRAL = b"PK\x03\x04", b"PK\x01\x02"
HEADER_BYTES = 30

_UTF8 = 0x0800
_TIME, _DATE = 0, (1 << 5) | 1
"""Midnight of 1 January 1980, the first that the format knows."""
_MADE_BY_UNIX = 3 << 8
_FILE_MODE = 0o100644 << 16
_VERSION, _VERSION_64 = 20, 45


@dataclass(frozen=True)
class Member:
    """A stored file and where its local header begins."""

    name: str
    size: int
    crc: int
    offset: int


def local_header(member: Member) -> bytes:
    """What stands before a file's content."""
    name = member.name.encode()
    large = member.size >= LIMIT
    extra = struct.pack("<HHQQ", 1, 16, member.size, member.size) if large else b""
    size = LIMIT if large else member.size
    fixed = struct.pack(
        "<4s5H3I2H", LOCAL, _VERSION_64 if large else _VERSION, _UTF8, 0, _TIME, _DATE,
        member.crc, size, size, len(name), len(extra),
    )  # fmt: skip
    return fixed + name + extra


def _central_header(member: Member) -> bytes:
    name = member.name.encode()
    wide = [member.size, member.size] if member.size >= LIMIT else []
    wide += [member.offset] if member.offset >= LIMIT else []
    extra = struct.pack(f"<HH{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
    version = _VERSION_64 if wide else _VERSION
    size, offset = min(member.size, LIMIT), min(member.offset, LIMIT)
    fixed = struct.pack(
        "<4s6H3I5H2I", CENTRAL, _MADE_BY_UNIX | version, version, _UTF8, 0, _TIME, _DATE,
        member.crc, size, size, len(name), len(extra), 0, 0, 0, _FILE_MODE, offset,
    )  # fmt: skip
    return fixed + name + extra


def directory(members: Sequence[Member], start: int) -> bytes:
    """What follows the last file's content, which ends at `start`."""
    central = b"".join(map(_central_header, members))
    count, end = len(members), start + len(central)
    tail = b""
    if count >= COUNT_LIMIT or len(central) >= LIMIT or start >= LIMIT:
        version = _MADE_BY_UNIX | _VERSION_64
        tail = struct.pack(
            "<4sQ2H2I4Q", b"PK\x06\x06", 44, version, _VERSION_64, 0, 0, count, count,
            len(central), start,
        ) + struct.pack("<4sIQI", b"PK\x06\x07", 0, end, 1)  # fmt: skip
    count, size = min(count, COUNT_LIMIT), min(len(central), LIMIT)
    return central + tail + struct.pack(
        "<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, size, min(start, LIMIT), 0
    )  # fmt: skip


def parse_local_header(fixed: bytes) -> tuple[int, int, int, int, int]:
    """Compression method, CRC, stored size, and lengths of name and extra field.

    Raises:
        struct.error: fewer than `HEADER_BYTES` bytes.
    """
    _, _, _, method, _, _, crc, size, _, name, extra = struct.unpack("<4s5H3I2H", fixed)
    return method, crc, size, name, extra
