"""One tensor of the output file, described by the source rows that it is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod

import numpy as np

from edgeadapt.weights import Float32Array, WeightSource

RowTransform = Callable[[Float32Array], Float32Array]
"""Changes a chunk of rows; the chunk begins and ends at multiples of the plan's `row_multiple`."""


@dataclass(frozen=True)
class RowRange:
    """Rows [start, stop) of a source tensor."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class TensorPlan:
    """What goes into the file under `name`."""

    name: str
    shape: tuple[int, ...]
    """Slowest axis first, as in the source."""
    parts: tuple[RowRange, ...] = ()
    """Source rows, stacked along the first axis."""
    transform: RowTransform | None = None
    row_multiple: int = 1
    values: Float32Array | None = None
    """A computed tensor, in place of `parts`."""

    @property
    def columns(self) -> int:
        """Values in a row, the unit that is quantized."""
        return self.shape[-1]

    @property
    def rows(self) -> int:
        """Number of rows; a vector is one row."""
        return prod(self.shape[:-1])

    @property
    def source_rows(self) -> int:
        """Rows along the first axis of what it is read from; 1 for a computed tensor."""
        return sum(part.stop - part.start for part in self.parts) or 1

    def chunk_bytes(self, start: int, stop: int) -> int:
        """Bytes of float32 of source rows [start, stop)."""
        return 4 * prod(self.shape) * (stop - start) // self.source_rows

    @property
    def largest_chunk(self) -> int:
        """Bytes of float32 in the largest of `chunks`; the first is as large as any."""
        return self.chunk_bytes(*next(iter(self.chunks())))

    def chunks(self, max_bytes: int = 1 << 20) -> Iterator[tuple[int, int]]:
        """Ranges of source rows of at most about `max_bytes` of float32 each."""
        total = self.source_rows
        step = max(1, max_bytes // (4 * max(1, prod(self.shape) // total)))
        step = max(self.row_multiple, step // self.row_multiple * self.row_multiple)
        for start in range(0, total, step):
            yield start, min(total, start + step)

    def read(self, source: WeightSource, start: int, stop: int) -> Float32Array:
        """Rows [start, stop) of the output, shape (any, columns), C-contiguous."""
        if self.values is not None:
            return self.values.reshape(-1, self.columns)
        pieces, offset = [], 0
        for part in self.parts:
            size = part.stop - part.start
            first, last = max(start - offset, 0), min(stop - offset, size)
            if first < last:
                pieces.append(source.rows(part.name, part.start + first, part.start + last))
            offset += size
        rows = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        if self.transform is not None:
            rows = self.transform(rows)
        return np.ascontiguousarray(rows, dtype=np.float32).reshape(-1, self._width(rows))

    def _width(self, rows: Float32Array) -> int:
        return self.columns if rows.ndim > 1 else rows.size


def whole(name: str, source: str, shape: tuple[int, ...]) -> TensorPlan:
    """A tensor taken over as it is."""
    return TensorPlan(name, shape, (RowRange(source, 0, shape[0]),))
