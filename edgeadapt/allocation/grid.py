"""Whether a base's weights lie on a quantization grid, because its file was quantized once before.

Rounding a merged weight to the grid that its base came from looks nearly free, since it sets back
whatever the adapter moved by less than half a step, and so erases the adapter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeadapt.allocation.matrices import Matrix
from edgeadapt.weights import Float32Array, WeightSource

_BLOCKS = (32, 16)
"""Values that share a scale in llama.cpp's formats, or a part of those that do."""
_LEVELS = (4, 8, 16, 32)
"""2 to 5 bits; a block is too short to tell finer grids from none."""
_VALUES = 2048
"""Looked at of each matrix."""
_SHARE = 0.9
"""Blocks that must lie on the grid."""
_ROUNDING = 4e-3
"""Of a block's extent: what storing the values in 16 bits (bfloat16 too) moves them."""

Float64Array = npt.NDArray[np.float64]
_Count = Callable[[Float64Array], Float64Array]


@dataclass(frozen=True)
class Grid:
    """How much of a base lies on one."""

    levels: int
    """Different values in a block, at most; the commonest number."""
    block: int
    """Values in a block."""
    names: frozenset[str]
    """The matrices that lie on a grid, by llama.cpp's names."""
    of: int
    """Number of matrices of the model."""

    def __str__(self) -> str:
        return (
            f"{len(self.names)} of {self.of} matrices of the base hold at most {self.levels} "
            f"levels in each block of {self.block} weights: its file was quantized before, to "
            f"about {self.levels.bit_length() - 1} bits"
        )

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "levels": self.levels, "block": self.block,
            "matrices": len(self.names), "of": self.of,
        }  # fmt: skip


def find_grid(base: WeightSource, matrices: Sequence[Matrix]) -> Grid | None:
    """The grid that the base's weights lie on; None if no matrix's do."""
    found = {}
    for matrix in matrices:
        part = matrix.plan.parts[0]
        info = base.tensors().get(part.name)
        if info is None:
            continue
        stop = min(part.start + max(1, _VALUES // info.shape[-1]), part.stop)
        grid = grid_of(base.rows(part.name, part.start, stop))
        if grid is not None:
            found[matrix.name] = grid
    if not found:
        return None
    (levels, block), _ = Counter(found.values()).most_common(1)[0]
    return Grid(levels, block, frozenset(found), len(matrices))


def grid_of(rows: Float32Array) -> tuple[int, int] | None:
    """Levels and block size of the grid that nearly all blocks of some rows lie on, if any.

    Args:
        rows: shape (rows, columns); blocks lie along a row.
    """
    for block in _BLOCKS:
        for levels in _LEVELS:
            # As many levels as values are no grid: anything fits.
            if levels <= block and _share(rows, block, _even_levels, levels) >= _SHARE:
                return levels, block
    block = _BLOCKS[0]
    levels = block // 2
    return (levels, block) if _share(rows, block, _values, levels) >= _SHARE else None


def _share(rows: Float32Array, block: int, count: _Count, most: int) -> float:
    """Share of the blocks that have at most so many levels."""
    if rows.shape[-1] % block:
        return 0.0
    blocks = np.sort(rows.reshape(-1, block).astype(np.float64), axis=1)
    return float((count(blocks) <= most).mean())


def _values(blocks: Float64Array) -> Float64Array:
    """How many different values there are: few in a table of uneven levels, such as NF4's."""
    different: Float64Array = (np.diff(blocks, axis=1) > 0).sum(axis=1).astype(np.float64)
    return different + 1.0


def _even_levels(blocks: Float64Array) -> Float64Array:
    """Levels of the coarsest even grid through all values; infinite if there is none.

    Args:
        blocks: shape (blocks, values), each sorted.
    """
    extents = blocks[:, -1:] - blocks[:, :1]
    places = (blocks - blocks[:, :1]) / np.where(extents > 0, extents, 1.0)
    gaps = np.diff(places, axis=1)
    smallest = np.where(gaps > _ROUNDING, gaps, 1.0).min(axis=1, keepdims=True)
    levels = np.full(len(blocks), np.inf)
    for missing in (3, 2, 1):  # neighbouring levels may all be missing
        counts = np.rint(missing / smallest)
        off = np.abs(places * counts - np.rint(places * counts)).max(axis=1, keepdims=True)
        fits = (off <= _ROUNDING * counts) & (counts < _LEVELS[-1])
        levels = np.where(fits[:, 0], counts[:, 0] + 1, levels)
    return levels
