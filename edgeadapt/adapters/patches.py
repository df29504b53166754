"""The arithmetic of merging, on row ranges of one tensor, in float32.

A patch turns rows [start, stop) of a base tensor into the same rows of the merged one. Nothing
here knows about files or names. W has shape (out, in); A is (r, in), B is (out, r).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from edgeadapt.weights import Float32Array

ReadRows = Callable[[int, int], Float32Array]


class Patch(Protocol):
    """Changes one tensor."""

    def apply(self, rows: Float32Array, start: int, stop: int) -> Float32Array:
        """Merged rows [start, stop), from the base's; may reuse `rows`."""
        ...


@dataclass(frozen=True)
class LoraPatch:
    """W + scale * B @ A (arXiv 2106.09685)."""

    a: Float32Array
    b: Float32Array
    scale: float
    transposed: bool = False
    """W is stored (in, out), as GPT-2's Conv1D does and as embeddings are."""

    def delta(self, start: int, stop: int) -> Float32Array:
        """Rows [start, stop) of scale * B @ A, in W's orientation."""
        if self.transposed:
            product = self.a[:, start:stop].T @ self.b.T
        else:
            product = self.b[start:stop] @ self.a
        product *= np.float32(self.scale)
        return product

    def apply(self, rows: Float32Array, start: int, stop: int) -> Float32Array:
        """Add the low-rank product."""
        rows += self.delta(start, stop)
        return rows


@dataclass(frozen=True)
class DoraPatch:
    """m * V / ||V|| with V = W + scale * B @ A and the norm over each output's inputs.

    arXiv 2402.09353; PEFT computes the norm from the weight before any adapter was merged.
    """

    lora: LoraPatch
    magnitude: Float32Array
    read_base: ReadRows | None = None
    """The weight before any adapter; absent where that is what `apply` is given."""

    def apply(self, rows: Float32Array, start: int, stop: int) -> Float32Array:
        """Rescale each row to its trained magnitude."""
        rows = self.lora.apply(rows, start, stop)
        own = rows
        if self.read_base is not None:
            own = self.lora.apply(self.read_base(start, stop), start, stop)
        norms = np.linalg.norm(own, axis=1)
        rows *= (self.magnitude[start:stop] / norms)[:, None]
        return rows


@dataclass
class EmbeddingDoraPatch:
    """DoRA where an output is a column: embeddings, and Conv1D weights stored transposed.

    The norm then runs over all rows, so the first call reads the whole tensor once, in chunks.
    """

    lora: LoraPatch
    magnitude: Float32Array
    read_base: ReadRows
    rows: int
    _factor: Float32Array | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def factor(self, step: int = 4096) -> Float32Array:
        """Magnitude over norm, for each column."""
        with self._lock:
            if self._factor is None:
                squares = np.zeros(self.magnitude.size, dtype=np.float64)
                for start in range(0, self.rows, step):
                    stop = min(self.rows, start + step)
                    merged = self.lora.apply(self.read_base(start, stop), start, stop)
                    squares += np.square(merged, dtype=np.float64).sum(axis=0)
                self._factor = (self.magnitude / np.sqrt(squares)).astype(np.float32)
            return self._factor

    def apply(self, rows: Float32Array, start: int, stop: int) -> Float32Array:
        """Rescale each column to its trained magnitude."""
        rows = self.lora.apply(rows, start, stop)
        rows *= self.factor()[None, :]
        return rows


@dataclass(frozen=True)
class ScalePatch:
    """IA3 (arXiv 2205.05638): scale outputs (rows of W, or a bias) or inputs (columns)."""

    vector: Float32Array
    by_row: bool

    def apply(self, rows: Float32Array, start: int, stop: int) -> Float32Array:
        """Multiply by the learned vector."""
        if not self.by_row:
            rows *= self.vector[None, :]
        elif rows.ndim == 1:
            rows *= self.vector[start:stop]
        else:
            rows *= self.vector[start:stop, None]
        return rows


@dataclass(frozen=True)
class AddPatch:
    """Add a vector: the bias that `lora_bias` trains beside B."""

    vector: Float32Array

    def apply(self, rows: Float32Array, start: int, stop: int) -> Float32Array:
        """Add to a bias."""
        rows += self.vector[start:stop]
        return rows


@dataclass(frozen=True)
class RowsPatch:
    """Replace chosen rows: single tokens of an embedding that were trained."""

    indices: tuple[int, ...]
    values: Float32Array

    def apply(self, rows: Float32Array, start: int, stop: int) -> Float32Array:
        """Put the trained rows in."""
        for position, index in enumerate(self.indices):
            if start <= index < stop:
                rows[index - start] = self.values[position]
        return rows


@dataclass(frozen=True)
class ReplacePatch:
    """Take the tensor from somewhere else: the adapter file, or another library's merge."""

    read: ReadRows

    def apply(self, rows: Float32Array, start: int, stop: int) -> Float32Array:
        """Ignore the base's rows."""
        return self.read(start, stop)
