"""Files in the system's page cache: how much of them is there, bring them in, drop them."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

_CHUNK = 1 << 22


def files_of(path: Path) -> list[Path]:
    """The file, or every file below the folder."""
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())


def resident_fraction(files: Iterable[Path]) -> float | None:
    """Fraction of the files' pages that are in the page cache, by mincore(2).

    None where there is no mincore, or where it does not tell: Linux reports every page as
    present for a file that this user neither owns nor may write.
    """
    present = total = 0
    for path in files:
        counts = _resident_pages(path)
        if counts is None:
            return None
        present += counts[0]
        total += counts[1]
    return present / total if total else None


def _resident_pages(path: Path) -> tuple[int, int] | None:
    try:
        mincore = ctypes.CDLL(None, use_errno=True).mincore
    except (OSError, AttributeError, TypeError):  # TypeError: Windows has no default library
        return None
    status = path.stat()
    if status.st_size == 0:
        return 0, 0
    if status.st_uid != os.geteuid() and not os.access(path, os.W_OK):
        return None
    mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    pages = -(-status.st_size // mmap.PAGESIZE)
    vector = ctypes.create_string_buffer(pages)
    # A private writable mapping, because ctypes takes addresses only of writable buffers; it is
    # neither read nor written, so no page is brought in or copied.
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        as mapped,
    ):  # fmt: skip
        first = ctypes.c_char.from_buffer(mapped)
        failed = mincore(ctypes.addressof(first), status.st_size, vector)
        del first  # mmap refuses to close while something points into it
    if failed:
        return None
    return sum(byte & 1 for byte in vector.raw), pages


def read_once(files: Iterable[Path]) -> None:
    """Read files from beginning to end, so that they are in the page cache if they fit."""
    buffer = bytearray(_CHUNK)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def drop(files: Iterable[Path]) -> bool:
    """Ask the system to drop files from the page cache; False where it cannot be asked.

    Pages that some process has mapped, or that are not yet on disk, stay: look at
    `resident_fraction` afterwards.
    """
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in files:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)  # only clean pages can be dropped
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)
    return True
