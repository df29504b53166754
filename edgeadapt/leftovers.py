"""Temporary siblings of what is being written, and what killed processes left of theirs.

Each is locked while the process that writes it lives, so that nobody takes it for a leftover.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from edgeadapt.errors import InputError

try:
    import fcntl
except ImportError:  # Windows: leftovers of killed processes stay
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def partial_of(final: Path, *, folder: bool) -> Iterator[Path]:
    """A new temporary sibling, locked while this process lives, and removed at the end."""
    while True:
        partial, handle = _new_sibling(final, folder)
        try:
            # another process may have swept it away between the two calls: then once more
            if not _lock(handle, wait=True) or partial.exists():
                yield partial
                return
        finally:
            if handle is not None:
                os.close(handle)
            if folder:
                shutil.rmtree(partial, ignore_errors=True)
            else:
                partial.unlink(missing_ok=True)


def _new_sibling(final: Path, folder: bool) -> tuple[Path, int | None]:
    prefix, suffix = f".{final.name}.", ".partial"
    try:
        if folder:
            path = Path(tempfile.mkdtemp(suffix, prefix, final.parent))
            return path, os.open(path, os.O_RDONLY) if fcntl else None
        handle, name = tempfile.mkstemp(suffix, prefix, final.parent)
        return Path(name), handle
    except OSError as error:
        raise InputError(
            f"cannot write to {final.parent}: {error.strerror or error}; choose another --out"
        ) from error


def sweep(final: Path) -> None:
    """Remove what killed processes left for this name: nobody holds its lock any more."""
    _sweep(final.parent, re.escape(final.name))


def sweep_folder(folder: Path) -> None:
    """Remove what killed processes left in a folder for any name; folders in it stay as they are.

    The folder need not exist.
    """
    if folder.is_dir():
        _sweep(folder, ".+")


@contextlib.contextmanager
def scratch(purpose: str) -> Iterator[Path]:
    """A temporary folder in the system's place for them, that is gone at the end.

    What a killed process left there for the same purpose is removed first.

    Args:
        purpose: a word for the folder's name.

    Raises:
        InputError: it cannot be made.
    """
    place = Path(tempfile.gettempdir()) / f"edgeadapt-{purpose}"
    sweep(place)
    with partial_of(place, folder=True) as folder:
        yield folder


def sweep_scratch() -> None:
    """Remove what killed processes left in the system's place for temporary files."""
    _sweep(Path(tempfile.gettempdir()), "edgeadapt-.+")


def _sweep(folder: Path, name: str) -> None:
    if fcntl is None:
        return
    pattern = re.compile(rf"\.{name}\.[a-z0-9_]+\.partial")
    for path in [p for p in folder.iterdir() if pattern.fullmatch(p.name)]:
        with contextlib.suppress(OSError):  # it is another user's, or gone already
            handle = os.open(path, os.O_RDONLY)
            try:
                if not _lock(handle, wait=False):
                    continue
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()
            finally:
                os.close(handle)


def _lock(handle: int | None, *, wait: bool) -> bool:
    """Take the lock of an open file; false where there is none to have."""
    if fcntl is None or handle is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # held by another process, or a file system without locks
        return False
    return True
