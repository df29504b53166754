"""Where everything goes: the files of an export to the byte, before a weight is read."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf.constants import GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType
from gguf.gguf_writer import SHARD_NAME_FORMAT, WriterState

from edgeadapt.converters.gguf.ggml import row_bytes
from edgeadapt.converters.gguf.plan import TensorPlan
from edgeadapt.weights import Float32Array


@dataclass(frozen=True)
class Placed:
    """One tensor of a file."""

    plan: TensorPlan
    kind: GGMLQuantizationType
    importance: Float32Array | None = None
    """Weight of each column, shape (matrices, columns)."""

    @property
    def nbytes(self) -> int:
        """Bytes of its data, without padding."""
        return self.plan.rows * row_bytes(self.kind, self.plan.columns)


@dataclass(frozen=True)
class Part:
    """One file: its header with key-values and tensor infos, then its tensors, each padded."""

    header: bytes
    tensors: tuple[Placed, ...]

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self.header) + sum(padded(tensor.nbytes) for tensor in self.tensors)


def padded(size: int) -> int:
    """`size` with the padding that GGUF puts after a tensor."""
    return int(-(-size // GGUF_DEFAULT_ALIGNMENT) * GGUF_DEFAULT_ALIGNMENT)


def group(tensors: Sequence[Placed], split_max_bytes: int = 0) -> list[tuple[Placed, ...]]:
    """Tensors by file: as many in a row as fit, as llama.cpp's gguf-split counts them.

    Args:
        tensors: in file order.
        split_max_bytes: most tensor data in one file (at least one tensor); 0 for one file.
    """
    groups: list[list[Placed]] = [[]]
    size = 0
    for tensor in tensors:
        more = padded(tensor.nbytes)
        if split_max_bytes and groups[-1] and size + more > split_max_bytes:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += more
    return [tuple(tensors) for tensors in groups]


def declare(writer: gguf.GGUFWriter, groups: Sequence[Sequence[Placed]]) -> None:
    """Tell the writer every tensor's shape and type, before any data."""
    for number, tensors in enumerate(groups):
        if number:
            writer.tensors.append({})
        for tensor in tensors:
            writer.add_tensor_info(
                tensor.plan.name,
                tensor.plan.shape,
                np.dtype(np.float32),
                tensor.nbytes,
                raw_dtype=tensor.kind,
            )


def parts(writer: gguf.GGUFWriter, groups: Sequence[tuple[Placed, ...]]) -> list[Part]:
    """The files that the writer's key-values and declared tensors make; the writer is used up."""
    buffers = [io.BytesIO() for _ in groups]
    writer.fout = buffers
    writer.state = WriterState.EMPTY
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    made = []
    for buffer, tensors in zip(buffers, groups, strict=True):
        writer.write_padding(buffer, buffer.tell())
        made.append(Part(buffer.getvalue(), tensors))
    return made


def names(out: Path, count: int) -> list[Path]:
    """Where the parts go: `out` itself, or llama.cpp's numbered names beside it."""
    if count == 1:
        return [out]
    stem = out.name.removesuffix(".gguf")
    return [out.with_name(SHARD_NAME_FORMAT.format(stem, i + 1, count)) for i in range(count)]
