"""Importance matrices: how much each input column of each weight matters, in llama.cpp's file.

The format, from llama.cpp's `tools/imatrix` (release bundled with llama-cpp-python 0.3.36): a GGUF
file of `general.type` "imatrix" with, for each weight, a tensor `<name>.in_sum2` (matrices,
columns) of summed squared activations and `<name>.counts` (matrices, 1) of how many were summed.
A weight is several matrices where a mixture of experts stacks them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import gguf
import numpy as np

from edgeadapt.errors import CorruptFileError, InputError
from edgeadapt.files import atomic_file, sha256_file
from edgeadapt.gguf_io import MAGIC, GgufFile
from edgeadapt.weights import Float32Array

TYPE = "imatrix"
DATASETS = "imatrix.datasets"
CHUNK_COUNT = "imatrix.chunk_count"
CHUNK_SIZE = "imatrix.chunk_size"
SUMS, COUNTS = ".in_sum2", ".counts"

_TEXT_BYTES = 127
"""llama-quantize cuts the strings that it records to this."""


@dataclass(frozen=True)
class Entry:
    """One weight's statistics."""

    sums: Float32Array
    """Squared activations, summed, shape (matrices, columns)."""
    counts: Float32Array
    """Activations that were summed for each matrix, shape (matrices,)."""

    def mean(self) -> Float32Array:
        """Mean squared activation, shape (matrices, columns); 1 where nothing was seen."""
        counts = np.rint(self.counts).astype(np.float32)[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(counts > 0, self.sums / counts, np.float32(1)).astype(np.float32)


@dataclass(frozen=True)
class Imatrix:
    """An importance matrix; entries by GGUF tensor name."""

    entries: Mapping[str, Entry]
    datasets: tuple[str, ...] = ()
    chunk_count: int = 0
    chunk_size: int = 0
    """Tokens in a chunk."""
    name: str = ""
    """What the quantized file calls it."""
    sha256: str = ""
    """Of the file it was read from."""
    pending: bool = False
    """Stands for one that is not computed yet: every weight counts as covered."""

    def importance(self, name: str, shape: tuple[int, ...]) -> Float32Array | None:
        """Weight of each column of a tensor, shape (matrices, columns); None where not covered.

        Args:
            name: the tensor's GGUF name.
            shape: its shape, slowest axis first.

        Raises:
            InputError: the entry is of another size, so the matrix belongs to another model.
        """
        entry = self.entries.get(name)
        if entry is None:
            return None
        matrices = prod(shape[:-2])
        if entry.sums.size != matrices * shape[-1]:
            raise InputError(
                f"the importance matrix {self.name} has {entry.sums.size} values for {name}, which "
                f"has {matrices * shape[-1]} columns; it was made for another model: make one with "
                "edgeadapt imatrix"
            )
        return np.ascontiguousarray(entry.mean().reshape(matrices, shape[-1]))

    def metadata(self) -> dict[str, str | int]:
        """The key-values by which llama-quantize records it in a quantized file."""
        keys: dict[str, str | int] = {"quantize.imatrix.file": _cut(self.name)}
        if self.datasets:
            keys["quantize.imatrix.dataset"] = _cut(self.datasets[0])
        keys["quantize.imatrix.entries_count"] = len(self.entries)
        if self.chunk_count > 0:
            keys["quantize.imatrix.chunks_count"] = self.chunk_count
        return keys


def write_imatrix(imatrix: Imatrix, path: Path) -> None:
    """Write llama.cpp's file, atomically.

    Raises:
        InputError: `path` exists.
    """
    with atomic_file(path) as partial:
        writer = gguf.GGUFWriter(None, TYPE)
        writer.kv_data[0].clear()  # llama.cpp's files name no architecture
        writer.add_type(TYPE)
        writer.add_array(DATASETS, list(imatrix.datasets))
        writer.add_uint32(CHUNK_COUNT, imatrix.chunk_count)
        writer.add_uint32(CHUNK_SIZE, imatrix.chunk_size)
        for name, entry in sorted(imatrix.entries.items()):
            writer.add_tensor(name + SUMS, entry.sums)
            writer.add_tensor(name + COUNTS, entry.counts.reshape(-1, 1))
        writer.write_header_to_file(partial)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def read_imatrix(path: Path) -> Imatrix:
    """Read llama.cpp's file, every number checked.

    Raises:
        InputError: it cannot be read, or is no importance matrix.
        CorruptFileError: it is truncated or malformed, or holds impossible numbers.
    """
    if not path.is_file():
        raise InputError(f"the importance matrix {path} does not exist; make one with imatrix")
    with path.open("rb") as stream:
        if stream.read(4) != MAGIC:
            raise InputError(
                f"{path} is not a GGUF importance matrix; a .dat file of older llama.cpp versions "
                "is turned into one by: llama-imatrix --in-file OLD.dat --output-format gguf -o NEW"
            )
    file = GgufFile(path)
    if file.metadata.get("general.type") != TYPE:
        raise InputError(
            f"{path} is a GGUF file, but no importance matrix (general.type is "
            f"{file.metadata.get('general.type')!r}); make one with edgeadapt imatrix"
        )
    names = [name.removesuffix(SUMS) for name in file.tensors if name.endswith(SUMS)]
    if not names or {f"{name}{end}" for name in names for end in (SUMS, COUNTS)} != set(
        file.tensors
    ):
        raise CorruptFileError(f"{path} does not hold pairs of <name>{SUMS} and <name>{COUNTS}")
    return Imatrix(
        entries={name: _entry(file, name) for name in names},
        datasets=tuple(file.strings(DATASETS)) if DATASETS in file.metadata else (),
        chunk_count=file.get(CHUNK_COUNT, int, 0),
        chunk_size=file.get(CHUNK_SIZE, int, 0),
        name=path.name,
        sha256=sha256_file(path),
    )


def _entry(file: GgufFile, name: str) -> Entry:
    def values(key: str) -> Float32Array:
        tensor = file.tensors[key]
        if tensor.type != gguf.GGMLQuantizationType.F32:
            raise CorruptFileError(f"{file.path}: {key} is {tensor.type.name}, expected F32")
        found = file.rows(key, 0, tensor.shape[0])
        if not np.isfinite(found).all() or (found < 0).any():
            raise CorruptFileError(f"{file.path}: {key} holds negative, NaN or infinite values")
        return found

    sums, counts = values(name + SUMS).reshape(-1), values(name + COUNTS).reshape(-1)
    if sums.size % counts.size:
        raise CorruptFileError(f"{file.path}: {name} has {sums.size} sums for {counts.size} counts")
    rows = sums.reshape(counts.size, -1)
    empty = (counts >= 0.5) & ~rows.any(axis=1)
    if empty.any():
        raise CorruptFileError(
            f"{file.path}: {name} counts {counts[empty][0]:.0f} activations that are all zero"
        )
    return Entry(rows, counts)


def _cut(text: str) -> str:
    return text.encode()[:_TEXT_BYTES].decode(errors="ignore")
