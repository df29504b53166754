"""Files that are either whole or absent: atomic writes, content hashes, the cache folder."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeadapt.errors import CorruptFileError, DiskFullError, InputError
from edgeadapt.leftovers import partial_of, sweep, sweep_folder, sweep_scratch

_CHUNK = 1 << 20


def cache_dir() -> Path:
    """Folder for what can be made again: `$EDGEADAPT_CACHE`, else `~/.cache/edgeadapt`."""
    root = os.environ.get("EDGEADAPT_CACHE")
    if root:
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "edgeadapt"


def sweep_cache() -> None:
    """Remove what killed processes left half-written in the cache, and among temporary files."""
    root = cache_dir()
    for folder in (root, *root.glob("*/"), *root.glob("*/*/")):
        sweep_folder(folder)
    sweep_scratch()


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_tree(folder: Path) -> str:
    """Hex SHA-256 over the relative names and contents of every file below `folder`."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{sha256_file(path)}\n".encode())
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Hex SHA-256 of a JSON-serializable value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        InputError: the file is missing or unreadable.
        CorruptFileError: the file is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{path} is not valid JSON: {error}") from error


def free_bytes(path: Path) -> int:
    """Free space on the disk where `path` is or will be."""
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def check_disk(out: Path, needed: int) -> None:
    """See that the disk of `out` has room for `needed` bytes.

    Raises:
        DiskFullError: it has not.
    """
    free = free_bytes(out)
    if free < needed:
        raise DiskFullError(
            f"{out} needs {needed / 1e6:,.1f} MB while it is written, but its disk has "
            f"{free / 1e6:,.1f} MB free; make room, or choose another --out or a smaller --quant"
        )


_FULL_DISK = re.compile(r"No space left on device|os error 28|inline_container\.cc|PytorchStream")
"""In what torch and safetensors raise when a file could not be written."""


@contextlib.contextmanager
def full_disk_told(place: Path) -> Iterator[None]:
    """Raise what libraries of their own kind raise of a full disk as the system's error.

    Args:
        place: a file or folder on that disk, for the message.

    Raises:
        OSError: ENOSPC.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if _FULL_DISK.search(str(error)) is None:
            raise
        number = errno.ENOSPC
        raise OSError(number, os.strerror(number), str(place)) from error


def fsync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _free_to_write(final: Path, overwrite: bool) -> None:
    if final.exists() and not overwrite:
        raise InputError(f"{final} exists already; choose another --out, or remove it first")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {final.parent}: {error.strerror or error}") from error


@contextlib.contextmanager
def atomic_file(final: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary sibling path to write; on success fsync it and rename it to `final`.

    On any exception the temporary file is removed and `final` is untouched. What a killed process
    left behind for the same name is removed first.

    Raises:
        InputError: `final` exists and `overwrite` is false, or its folder cannot be made.
    """
    with atomic_files([final], overwrite=overwrite) as partials:
        yield partials[0]


@contextlib.contextmanager
def atomic_files(finals: Sequence[Path], *, overwrite: bool = False) -> Iterator[list[Path]]:
    """Like `atomic_file` for several files that are of use only together.

    They are renamed from the last to the first, so whoever sees the first sees all.

    Raises:
        InputError: one exists and `overwrite` is false, or its folder cannot be made.
    """
    for final in finals:
        _free_to_write(final, overwrite)
        sweep(final)
    with contextlib.ExitStack() as stack:
        partials = [stack.enter_context(partial_of(final, folder=False)) for final in finals]
        yield partials
        for partial in partials:
            partial.chmod(0o666 & ~_umask())
            fsync(partial)
        with contextlib.ExitStack() as undo:
            for partial, final in reversed(list(zip(partials, finals, strict=True))):
                partial.replace(final)
                if not overwrite:
                    undo.callback(final.unlink, missing_ok=True)
            undo.pop_all()
        for folder in {final.parent for final in finals}:
            fsync(folder)


@contextlib.contextmanager
def atomic_folder(final: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary sibling folder to fill; on success rename it to `final`.

    On any exception the temporary folder is removed and `final` is untouched. What a killed
    process left behind for the same name is removed first.

    Raises:
        InputError: `final` exists and `overwrite` is false, or its parent cannot be made.
    """
    _free_to_write(final, overwrite)
    sweep(final)
    with partial_of(final, folder=True) as partial:
        yield partial
        partial.chmod(0o777 & ~_umask())
        publish_folder(partial, final)


@contextlib.contextmanager
def staged(final: Path) -> Iterator[Path]:
    """Give a path of the same name in a temporary sibling folder, for what is looked at first.

    What `publish` has not moved away from there by the end is removed. What a killed process left
    behind for the same name is removed first.

    Raises:
        InputError: `final` exists, or its parent cannot be made.
    """
    _free_to_write(final, overwrite=False)
    sweep(final)
    with partial_of(final, folder=True) as folder:
        yield folder / final.name


def publish(paths: Sequence[Path], folder: Path) -> list[Path]:
    """Move finished files or folders into `folder`, the first one last, and return their places.

    Raises:
        InputError: one of the places is taken; nothing was moved.
    """
    finals = [folder / path.name for path in paths]
    for final in finals:
        _free_to_write(final, overwrite=False)
    for path, final in reversed(list(zip(paths, finals, strict=True))):
        path.replace(final)
    fsync(folder)
    return finals


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def publish_folder(partial: Path, final: Path) -> None:
    """Fsync every file below `partial`, then rename it to `final`, replacing what stood there.

    If it cannot be renamed, what stood there stays. What a killed process left behind of an earlier
    replacement is removed.
    """
    for path in partial.rglob("*"):
        if path.is_file() and not path.is_symlink():
            fsync(path)
    sweep(final)
    if final.exists():
        with partial_of(final, folder=True) as old:
            final.rename(old / final.name)
            try:
                partial.rename(final)
            except OSError:
                (old / final.name).rename(final)
                raise
    else:
        partial.rename(final)
    fsync(final.parent)


def write_texts(folder: Path, texts: Mapping[str, str]) -> None:
    """Write text files, each whole or not at all, over what is there of their names.

    Args:
        folder: where.
        texts: by name.
    """
    for name, text in texts.items():
        with atomic_file(folder / name, overwrite=True) as partial:
            partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, *, overwrite: bool = True) -> None:
    """Write `value` as indented JSON, atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    with atomic_file(path, overwrite=overwrite) as partial:
        partial.write_text(text, encoding="utf-8")
