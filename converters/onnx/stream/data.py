"""The file with the weights: where each tensor lies, and how it gets there a few rows at a time."""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeadapt.console import Advance
from edgeadapt.converters.gguf.plan import TensorPlan
from edgeadapt.converters.onnx.stream.blocks import BlockScheme, quantize
from edgeadapt.errors import CorruptFileError
from edgeadapt.weights import Float32Array, WeightSource

CHUNK_BYTES = 1 << 20
"""Float32 values that are worked on at once; quantizing makes some twenty times as much of it."""

_LARGE = 1 << 20
_LARGE_ALIGNMENT = 1 << 16
"""What Windows maps at; Linux and macOS ask for less."""
_ALIGNMENT = 64


@dataclass(frozen=True)
class Placed:
    """A tensor of the graph that lies in the data file."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Its size."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class FloatItem:
    """A tensor stored as numbers: as it is, or turned over for a product from the right."""

    plan: TensorPlan
    placed: Placed
    transposed: bool

    @property
    def parts(self) -> tuple[Placed, ...]:
        """What it fills."""
        return (self.placed,)

    def write(self, rows: Float32Array, start: int, data: npt.NDArray[np.uint8]) -> None:
        """Put rows from number `start` on in their place."""
        view = _view(data, self.placed)
        if self.transposed:
            view[:, start : start + len(rows)] = rows.T
        else:
            view.reshape(-1, rows.shape[1])[start : start + len(rows)] = rows


@dataclass(frozen=True)
class BlockItem:
    """A quantized matrix: values, scales and, unless all are the middle value, zero points."""

    plan: TensorPlan
    scheme: BlockScheme
    values: Placed
    scales: Placed
    zeros: Placed | None

    @property
    def parts(self) -> tuple[Placed, ...]:
        """What it fills."""
        return (self.values, self.scales, *([self.zeros] if self.zeros else []))

    def write(self, rows: Float32Array, start: int, data: npt.NDArray[np.uint8]) -> None:
        """Quantize rows from number `start` on, and put them in their places."""
        for placed, result in zip(self.parts, quantize(rows, self.scheme), strict=False):
            _view(data, placed)[start : start + len(rows)] = result


Item = FloatItem | BlockItem


class DataLayout:
    """Gives each tensor its place, one after the other."""

    def __init__(self) -> None:
        self.size = 0
        self.items: list[Item] = []

    def add_float(
        self, plan: TensorPlan, *, half: bool = False, transposed: bool = False
    ) -> Placed:
        """Place a tensor as float32 or float16."""
        shape = plan.shape[::-1] if transposed else plan.shape
        placed = self._place(plan.name, np.dtype(np.float16 if half else np.float32), shape)
        self.items.append(FloatItem(plan, placed, transposed))
        return placed

    def add_blocks(self, plan: TensorPlan, scheme: BlockScheme) -> BlockItem:
        """Place a matrix in blocks."""
        values, scales, zeros = scheme.shapes(*plan.shape)
        byte, number = np.dtype(np.uint8), np.dtype(np.float32)
        item = BlockItem(
            plan,
            scheme,
            self._place(f"{plan.name}_Q{scheme.bits}G{scheme.block}", byte, values),
            self._place(f"{plan.name}_scale", number, scales),
            self._place(f"{plan.name}_zp", byte, zeros) if scheme.has_zeros else None,
        )
        self.items.append(item)
        return item

    def _place(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Placed:
        nbytes = prod(shape) * dtype.itemsize
        alignment = _LARGE_ALIGNMENT if nbytes >= _LARGE else _ALIGNMENT
        placed = Placed(name, dtype, shape, -(-self.size // alignment) * alignment)
        self.size = placed.offset + nbytes
        return placed


def write_data(
    path: Path, layout: DataLayout, source: WeightSource, threads: int, advance: Advance
) -> None:
    """Write every tensor of a layout; what is in memory does not grow with the model.

    Args:
        path: a file that does not exist yet.
        layout: what to write.
        source: the weights.
        threads: that read, merge and quantize.
        advance: told of each chunk's share of the file in bytes.

    Raises:
        CorruptFileError: a tensor holds NaN or infinite values.
        OSError: the disk is full.
    """
    _allocate(path, layout.size)
    data = np.memmap(path, dtype=np.uint8, mode="r+", shape=(layout.size,))
    pending: deque[Future[int]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item, start, stop in _chunks(layout.items):
                pending.append(pool.submit(_one, item, source, start, stop, data))
                if len(pending) > 2 * threads:
                    advance(pending.popleft().result())
            while pending:
                advance(pending.popleft().result())
        finally:
            for future in pending:
                future.cancel()
    data.flush()


def _chunks(items: Sequence[Item]) -> Iterator[tuple[Item, int, int]]:
    for item in items:
        for start, stop in item.plan.chunks(CHUNK_BYTES):
            yield item, start, stop


def _one(
    item: Item, source: WeightSource, start: int, stop: int, data: npt.NDArray[np.uint8]
) -> int:
    """Read, check and store one chunk; returns how many bytes of the file it stands for."""
    rows = item.plan.read(source, start, stop)
    if not np.isfinite(rows).all():
        raise CorruptFileError(f"{item.plan.name} holds NaN or infinite values; train it again")
    item.write(rows, start, data)
    share = (stop - start) / item.plan.source_rows
    return round(sum(part.nbytes for part in item.parts) * share)


def _view(data: npt.NDArray[np.uint8], placed: Placed) -> npt.NDArray[Any]:
    raw = data[placed.offset : placed.offset + placed.nbytes]
    return raw.view(placed.dtype).reshape(placed.shape)


def _allocate(path: Path, size: int) -> None:
    """Reserve the space, so that a full disk is an error here and not a signal later."""
    with path.open("xb") as file:
        file.truncate(size)
        if not size or not hasattr(os, "posix_fallocate"):
            return
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # not every file system can
                raise
