"""GGUF models split over several files, NAME-00001-of-0000N.gguf, as llama.cpp splits them.

The first file has all the metadata; each has some of the tensors, and the keys `split.no`,
`split.count` and `split.tensors.count` (llama.cpp's `gguf-split`).
"""

from __future__ import annotations

import re
from pathlib import Path

from edgeadapt.errors import CorruptFileError, InputError
from edgeadapt.gguf_io import GgufFile
from edgeadapt.weights import Float32Array

_NAME = re.compile(r"^(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")


def split_files(path: Path) -> list[Path]:
    """All files of the model that `path` is a part of, in order; `path` alone if it is whole.

    Raises:
        InputError: one is missing.
    """
    match = _NAME.match(path.name)
    if match is None or not 1 <= int(match["number"]) <= (count := int(match["count"])):
        return [path]
    names = [f"{match['stem']}-{n:05d}-of-{count:05d}.gguf" for n in range(1, count + 1)]
    files = [path.with_name(name) for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise InputError(
            f"{path.name} is one of {count} files of a model, and {missing[0]} is not beside it; "
            "put all of them into one folder"
        )
    return files


def open_gguf(path: Path) -> GgufFile:
    """A GGUF model: one file, or all of the files that it was split into.

    Raises:
        InputError: a file is missing or unreadable.
        CorruptFileError: a file is damaged, or the files do not belong together.
        UnsupportedError: as `GgufFile`.
    """
    files = split_files(path)
    return GgufFile(path) if len(files) == 1 else SplitGguf(files)


class SplitGguf(GgufFile):
    """Several files that read as one."""

    def __init__(self, paths: list[Path]) -> None:
        """Open every file and see that they are parts of the same model."""
        parts = [GgufFile(path) for path in paths]
        self.path = paths[0]
        self.metadata = parts[0].metadata
        self.tensors = {}
        self._part_of: dict[str, GgufFile] = {}
        for number, part in enumerate(parts):
            said = (part.get("split.no", int), part.get("split.count", int))
            if said != (number, len(parts)):
                raise CorruptFileError(
                    f"{part.path} says that it is file {said[0] + 1} of {said[1]}, its name that "
                    f"it is {number + 1} of {len(parts)}; download the model again"
                )
            for name, tensor in part.tensors.items():
                if name in self.tensors:
                    raise CorruptFileError(f"{part.path}: another file holds {name!r:.80} too")
                self.tensors[name] = tensor
                self._part_of[name] = part
        total = self.get("split.tensors.count", int)
        if total != len(self.tensors):
            raise CorruptFileError(
                f"{self.path} and the files beside it hold {len(self.tensors)} tensors, "
                f"expected {total}; they are not of the same model"
            )

    def rows(self, name: str, start: int, stop: int) -> Float32Array:
        """Rows of a tensor, from the file that holds it; see `GgufFile.rows`."""
        return self._part_of[name].rows(name, start, stop)
