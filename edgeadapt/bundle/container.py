"""A bundle's files, be it a folder or a ZIP archive, read without trusting a word of it.

Nothing is unpacked, no link is followed, and what is held in memory does not grow with the files.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from edgeadapt.bundle.names import LONGEST_NAME, MOST_FILES
from edgeadapt.bundle.zip_format import (
    HEADER_BYTES,
    LIMIT,
    LOCAL,
    Member,
    directory,
    local_header,
    parse_local_header,
)
from edgeadapt.errors import CorruptFileError, InputError

CHUNK = 1 << 20
_MOST_FOUND = 10 * MOST_FILES
_ZIP64_EXTRA = 20


class Container(Protocol):
    """Where a bundle's files are."""

    path: Path
    odd: dict[str, str]
    """Names of what is not a plain file, and what is wrong with it."""

    def sizes(self) -> dict[str, int]:
        """Bytes of every plain file, by its relative name."""

    def chunks(self, name: str) -> Iterator[bytes]:
        """A file's content."""

    def frame_problem(self) -> str | None:
        """What is wrong with the container itself, once its files are known to be right."""


def open_container(path: Path) -> Container:
    """A folder or ZIP archive.

    Raises:
        InputError: nothing is there, or it is neither.
        CorruptFileError: the archive holds too much or nothing.
    """
    if path.is_dir():
        return Folder(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist; give what `edgeadapt bundle` made")
    return Archive(path)


def read_file(container: Container, name: str, most: int) -> bytes:
    """A small file as a whole.

    Raises:
        InputError: it is not there.
        CorruptFileError: it has more than `most` bytes.
    """
    size = container.sizes().get(name)
    if size is None:
        raise InputError(
            f"{container.path} has no {name}; give a bundle that `edgeadapt bundle` made"
        )
    if size > most:
        raise CorruptFileError(f"{name} has {size} bytes, expected at most {most}")
    return b"".join(container.chunks(name))


@dataclass(frozen=True)
class Sums:
    """What a pass over a file gives."""

    size: int
    sha256: str
    crc: int


def sums(chunks: Iterator[bytes]) -> Sums:
    """Size, SHA-256 and CRC-32 of a content."""
    digest, crc, size = hashlib.sha256(), 0, 0
    for chunk in chunks:
        digest.update(chunk)
        crc = zlib.crc32(chunk, crc)
        size += len(chunk)
    return Sums(size, digest.hexdigest(), crc)


def file_chunks(file: IO[bytes], size: int | None = None) -> Iterator[bytes]:
    """What is left of a file, or its next `size` bytes, or fewer where it ends."""
    left = size
    while chunk := file.read(CHUNK if left is None else min(CHUNK, left)):
        yield chunk
        left = None if left is None else left - len(chunk)


class Folder:
    """A bundle that lies unpacked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.odd: dict[str, str] = {}
        self._sizes = dict(sorted(self._walk()))

    def _walk(self) -> Iterator[tuple[str, int]]:
        count = 0
        for root, folders, names in os.walk(self.path, followlinks=False):
            for name in [*folders, *names]:
                count += 1
                if count > _MOST_FOUND:
                    raise CorruptFileError(
                        f"{self.path} holds more than {_MOST_FOUND} files; it is no bundle"
                    )
                place = Path(root) / name
                mode, size = _mode_and_size(place)
                relative = os.fsencode(place.relative_to(self.path).as_posix())
                shown = relative.decode("utf-8", "backslashreplace")
                if stat.S_ISLNK(mode):
                    self.odd[shown] = "is a link"
                elif stat.S_ISREG(mode):
                    yield shown, size
                elif not stat.S_ISDIR(mode):
                    self.odd[shown] = "is neither a file nor a folder"

    def sizes(self) -> dict[str, int]:
        """See `Container`."""
        return self._sizes

    def chunks(self, name: str) -> Iterator[bytes]:
        """See `Container`."""
        if name not in self._sizes:
            raise InputError(f"{self.path} has no {name}")
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        try:
            handle = os.open(self.path / name, flags)
        except OSError as error:
            raise InputError(f"cannot read {self.path / name}: {error.strerror}") from error
        with os.fdopen(handle, "rb") as file:
            yield from file_chunks(file)

    def frame_problem(self) -> str | None:
        """See `Container`; a folder has no bytes of its own."""
        return None


def _mode_and_size(place: Path) -> tuple[int, int]:
    try:
        found = place.lstat()
    except OSError as error:
        raise InputError(f"cannot read {place}: {error.strerror or error}") from error
    return found.st_mode, found.st_size


class Archive:
    """A bundle in a ZIP archive that `edgeadapt bundle` wrote; any other archive is refused.

    The local headers are read one after another from the first byte. The central directory is
    never parsed: it has to equal the one that belongs to these files.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.odd: dict[str, str] = {}
        self._members: dict[str, Member] = {}
        self._data: dict[str, int] = {}
        """Where contents begin; not where they should, if a header was changed."""
        self._trouble: str | None = None
        with path.open("rb") as file:
            if file.read(4) != LOCAL:
                raise CorruptFileError(f"{path} is neither a folder nor a ZIP archive")
            self._scan(file)

    def _scan(self, file: IO[bytes]) -> None:
        """Find the members, up to what is no local header."""
        total = os.fstat(file.fileno()).st_size
        offset = 0
        while True:
            file.seek(offset)
            fixed = file.read(HEADER_BYTES)
            if fixed[:4] != LOCAL or len(fixed) < HEADER_BYTES:
                return
            if len(self._members) >= MOST_FILES:
                raise CorruptFileError(f"{self.path} holds more than {MOST_FILES} files")
            found = self._member(file, fixed, offset)
            if found is None:
                return
            member, method, data = found
            if data + member.size > total:
                self._trouble = f"{member.name} is cut off"
                return
            if method != 0 or member.name in self._members:
                self.odd[member.name] = "is compressed" if method else "is there twice"
            self._members.setdefault(member.name, member)
            self._data.setdefault(member.name, data)
            offset = data + member.size

    def _member(self, file: IO[bytes], fixed: bytes, offset: int) -> tuple[Member, int, int] | None:
        """The member whose header begins at `offset`, its method, and where its content begins."""
        method, crc, size, name_length, extra_length = parse_local_header(fixed)
        if name_length > LONGEST_NAME:
            self._trouble = f"a name of {name_length} bytes stands at byte {offset}"
            return None
        name = file.read(name_length).decode("utf-8", "backslashreplace")
        extra = file.read(extra_length)
        if size == LIMIT and len(extra) == _ZIP64_EXTRA:
            size = struct.unpack("<Q", extra[4:12])[0]
        data = offset + HEADER_BYTES + name_length + extra_length
        return Member(name, size, crc, offset), method, data

    def sizes(self) -> dict[str, int]:
        """See `Container`."""
        return {name: member.size for name, member in self._members.items()}

    def chunks(self, name: str) -> Iterator[bytes]:
        """See `Container`."""
        member = self._members[name]
        with self.path.open("rb") as file:
            file.seek(self._data[name])
            yield from file_chunks(file, member.size)

    def frame_problem(self) -> str | None:
        """See `Container`: compares every byte that is not a file's content."""
        if self._trouble:
            return self._trouble
        members, end = list(self._members.values()), 0
        with self.path.open("rb") as file:
            for member in members:
                expected = local_header(member)
                file.seek(member.offset)
                if member.offset != end or file.read(len(expected)) != expected:
                    return f"the archive's header of {member.name} was changed"
                end = member.offset + len(expected) + member.size
            expected = directory(members, end)
            file.seek(end)
            if file.read(len(expected) + 1) != expected:
                return "the archive's directory was changed, or something follows it"
        return None
