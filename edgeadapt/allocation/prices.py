"""What each type would cost each matrix, predicted from a sample of its rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from gguf.constants import GGMLQuantizationType

from edgeadapt.allocation.fisher import Diagonal
from edgeadapt.allocation.matrices import Matrix
from edgeadapt.allocation.rounding import rounded
from edgeadapt.allocation.torch_weights import Place
from edgeadapt.console import Advance
from edgeadapt.converters.gguf.imatrix import Imatrix
from edgeadapt.weights import Float32Array, WeightSource, row_chunks

_VALUES = 100_000
"""Values that are quantized of each matrix, about: 174 rows of 576."""
_MANY_ROWS = 32
"""A matrix of many rows, such as an embedding, gives at least one row in so many."""


@dataclass(frozen=True)
class Price:
    """What storing a matrix as a type does."""

    kl: float
    """Mean KL divergence that its rounding adds, predicted, in nats."""
    kept: float
    """Share of the adapter's change that is left after rounding, 1 where it changes nothing."""


@dataclass(frozen=True)
class Weights:
    """The weights to be stored, and what they were before any adapter."""

    merged: WeightSource
    base: WeightSource
    changed: frozenset[str]
    """Tensors that an adapter changes."""


@dataclass(frozen=True)
class _Rows:
    """Some rows of one matrix, drawn in proportion to what they matter."""

    values: Float32Array
    weights: npt.NDArray[np.float64]
    """Of each row, shape (rows, 1): its share of all the matrix's rows."""
    columns: npt.NDArray[np.float64]
    """Likewise of each column, shape (columns,)."""
    before: Float32Array | None
    """The base's rows, where the adapter changes them."""
    importance: Float32Array | None


def price_all(
    matrices: Sequence[Matrix],
    weights: Weights,
    places: Mapping[str, Place],
    diagonals: Mapping[str, Diagonal],
    imatrix: Imatrix,
    threads: int,
    advance: Advance,
) -> dict[str, dict[GGMLQuantizationType, Price]]:
    """Price of each type for each matrix, by its name.

    Args:
        matrices: what to price.
        weights: where their values are.
        places: where the statistics of a source tensor are.
        diagonals: by parameter, see `measure_fisher`.
        imatrix: what the quantizers weigh columns by.
        threads: how many matrices at once.
        advance: called with 1 after each matrix.
    """

    def one(matrix: Matrix) -> dict[GGMLQuantizationType, Price]:
        samples = list(_samples(matrix, weights, places, diagonals, imatrix))
        priced = {kind: _price(samples, kind) for kind in matrix.types}
        advance(1)
        return priced

    with ThreadPoolExecutor(threads) as pool:
        return dict(zip([m.name for m in matrices], pool.map(one, matrices), strict=True))


def _samples(
    matrix: Matrix,
    weights: Weights,
    places: Mapping[str, Place],
    diagonals: Mapping[str, Diagonal],
    imatrix: Imatrix,
) -> Iterator[_Rows]:
    plan = matrix.plan
    importance = imatrix.importance(plan.name, plan.shape)
    for number, part in enumerate(plan.parts):
        place = places[part.name]
        first = place.first_row + part.start
        rows, columns = diagonals[place.parameter].of(
            place.expert or 0, first, first + part.stop - part.start
        )
        count = max(_VALUES // plan.columns, plan.rows // _MANY_ROWS, 1) // len(plan.parts) or 1
        chosen, shares = draw_rows(rows, count)
        yield _Rows(
            _read(weights.merged, part.name, chosen + part.start),
            shares[:, None],
            columns,
            _read(weights.base, part.name, chosen + part.start)
            if part.name in weights.changed
            else None,
            None if importance is None else importance[number if len(plan.shape) == 3 else 0],
        )


def draw_rows(
    weights: npt.NDArray[np.float64], count: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Rows in proportion to their weights, and the weight that each stands for.

    Systematic sampling: a sum over all rows of weight * x is estimated by the sum over these.

    Args:
        weights: not negative, shape (rows,).
        count: how many to draw; a heavy row that is drawn twice comes once, with twice the weight.
    """
    if count >= len(weights) or not weights.sum():
        chosen = np.arange(min(count, len(weights)))
        return chosen, weights[chosen]
    total = np.cumsum(weights)
    points = (np.arange(count) + 0.5) * (total[-1] / count)
    chosen, times = np.unique(np.searchsorted(total, points), return_counts=True)
    return chosen, times * (total[-1] / count)


def _read(source: WeightSource, name: str, rows: npt.NDArray[np.int64]) -> Float32Array:
    pieces = []
    for start, stop in row_chunks(source.tensors()[name]):
        wanted = rows[(rows >= start) & (rows < stop)]
        if len(wanted):
            pieces.append(source.rows(name, start, stop)[wanted - start])
    return np.ascontiguousarray(np.concatenate(pieces))


def _price(samples: Sequence[_Rows], kind: GGMLQuantizationType) -> Price:
    cost = change = survived = 0.0
    for sample in samples:
        stored = rounded(sample.values, kind, sample.importance)
        error = stored - sample.values
        cost += _weighted(sample, error, error)
        if sample.before is not None:
            moved = sample.values - sample.before
            change += _weighted(sample, moved, moved)
            survived += _weighted(sample, moved, stored - sample.before)
    return Price(cost / 2, survived / change if change else 1.0)


def _weighted(sample: _Rows, left: Float32Array, right: Float32Array) -> float:
    """Sum of products, each weighed by how much its weight matters."""
    product = (left * right) @ sample.columns.astype(np.float32)
    return float((sample.weights[:, 0] * product).sum())
