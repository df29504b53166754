"""Which files of an artifact the other side needs, and which bytes of them are to be sent."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeadapt.artifact import open_artifact
from edgeadapt.errors import HostFailure, InputError
from edgeadapt.files import sha256_file
from edgeadapt.transports.base import NeededFile

_CHUNK = 1 << 20
_LIBRARIES = ("*llama*", "*ggml*", "libmtmd*", "libomp*", "libc++_shared*")
"""Of a build of llama.cpp, beside the program or in `../lib`; each with `.so` in its name."""


@dataclass(frozen=True)
class Portion:
    """The end of a file that the other side does not have."""

    file: NeededFile
    offset: int
    """Bytes that are there, and equal ours."""

    @property
    def missing(self) -> int:
        """Bytes to send."""
        return self.file.size - self.offset


def needed_files(path: Path, place: str) -> tuple[str, list[NeededFile]]:
    """The files of an artifact or adapter, and the path to give the program there.

    Args:
        path: a file, one part of a split GGUF file, or a folder.
        place: folder there to put it in, so that two of the same name do not meet.

    Raises:
        InputError: nothing is there.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist; expected a file or an exported folder")
    if path.is_dir():
        root = path.resolve()
        paths = [p for p in sorted(root.rglob("*")) if p.is_file()]
        names = [f"{place}/{root.name}/{p.relative_to(root).as_posix()}" for p in paths]
        return f"{place}/{root.name}", _needed(paths, names)
    paths = open_artifact(path).files if path.suffix == ".gguf" else [path]
    return f"{place}/{path.name}", _needed(paths, [f"{place}/{p.name}" for p in paths])


def program_files(program: Path) -> list[NeededFile]:
    """A program first, then the libraries of llama.cpp that lie beside it or in `../lib`.

    Raises:
        InputError: there is no such file.
    """
    if not program.is_file():
        raise InputError(f"{program} does not exist; expected llama-bench, built for the device")
    near = [
        path
        for folder in (program.parent, program.parent / ".." / "lib")
        for pattern in _LIBRARIES
        for path in sorted(folder.glob(f"{pattern}.so*"))
        if path.is_file()
    ]
    libraries = list({path.name: path for path in reversed(near)}.values())
    return _needed([program, *libraries], [path.name for path in (program, *libraries)])


def _needed(paths: Sequence[Path], names: Sequence[str]) -> list[NeededFile]:
    return [
        NeededFile(path, name, sha256_file(path), path.stat().st_size)
        for path, name in zip(paths, names, strict=True)
    ]


def plan_copies(host: str, files: Sequence[NeededFile], status: str) -> list[Portion]:
    """What is to be sent, from what the other side says it has.

    Args:
        host: its name, for messages.
        files: what it needs.
        status: lines `have SHA`, `part SHA BYTES SHA_OF_THEM`, `none SHA`, and `free KIB`.

    Raises:
        HostFailure: its disk has no room, or it answered something else.
    """
    lines = [line.split() for line in status.splitlines()]
    have = {words[1] for words in lines if words[:1] == ["have"] and len(words) == 2}
    parts = {w[1]: (int(w[2]), w[3]) for w in lines if w[:1] == ["part"] and len(w) == 4}
    free = [int(w[1]) * 1024 for w in lines if w[:1] == ["free"] and w[1:] and w[1].isdigit()]
    if not lines or lines[-1][:1] != ["free"]:
        raise HostFailure(f"{host} did not say which files it has, but: {status.strip()[:200]}")
    portions = []
    for file in {file.sha256: file for file in files}.values():
        if file.sha256 not in have:
            size, digest = parts.get(file.sha256, (0, ""))
            same = 0 < size < file.size and _sha256_of_start(file.path, size) == digest
            portions.append(Portion(file, size if same else 0))
    needed = sum(portion.missing for portion in portions)
    if free and free[0] < needed:
        raise HostFailure(
            f"{host} has {free[0] / 1e6:,.1f} MB free where artifacts are kept, and "
            f"{needed / 1e6:,.1f} MB are to be copied; make room there"
        )
    return portions


def _sha256_of_start(path: Path, size: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while size > 0 and (chunk := file.read(min(_CHUNK, size))):
            digest.update(chunk)
            size -= len(chunk)
    return digest.hexdigest()
