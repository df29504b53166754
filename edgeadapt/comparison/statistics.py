"""Differences between contenders, question by question, with bootstrap intervals.

Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 8 and 13: whole questions
are drawn with replacement (whole groups of them, where questions have something in common), and
whole seeds where there are several; the interval is that of percentiles.

Draws from a few questions or seeds vary less than these do. The percentiles are therefore those of
the expanded interval (Hesterberg, What Teachers Should Know About the Bootstrap, The American
Statistician 69, 2015), and what differs between seeds is enlarged by as much before: by
sqrt(n / (n - 1)) and by what Student's t has above the normal distribution.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeadapt.extras import need

Float64Array = npt.NDArray[np.float64]

LEVEL = 0.95
_DRAWS = 20_000
_MOST_NUMBERS = 1 << 23
"""Draws times questions: memory."""
_LEAST_DRAWS = 4000


@dataclass(frozen=True)
class Interval:
    """An estimate, and where it lies with a probability of `LEVEL`."""

    value: float
    low: float
    high: float

    @property
    def decided(self) -> bool:
        """Whether zero is outside."""
        return self.low > 0 or self.high < 0

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {"value": self.value, "low": self.low, "high": self.high}


def interval(
    values: Float64Array,
    weights: Float64Array,
    *,
    groups: Sequence[int] | None = None,
    among: int = 1,
) -> Interval:
    """sum(values) / sum(weights) over questions, the mean over seeds.

    The ends lie further out by twice the standard error that they have from the number of draws,
    so that no other draws would have decided what these did not.

    Args:
        values: shape (seeds, questions).
        weights: of each question, shape (questions,): its tokens, or 1.
        groups: number of the group that each question is of, from 0; None where each is its own.
        among: of how many intervals, looked at together, this is one: all of them shall hold with
            a probability of `LEVEL` (Bonferroni).
    """
    if groups is not None:
        values = np.array([np.bincount(groups, row) for row in values], np.float64)
        weights = np.asarray(np.bincount(groups, weights), np.float64)
    seeds, questions = values.shape
    estimate = float(values.mean(axis=0).sum() / weights.sum())
    tail = (1 - LEVEL) / 2 / among
    chosen = _draws(questions, 0)
    if seeds > 1:
        middle = values.mean(axis=0)
        values = middle + (values - middle) * (_reach(seeds, tail) / -NormalDist().inv_cdf(tail))
        rows = _draws(seeds, 1)[: len(chosen)]
        sums = ((rows @ values) * chosen).sum(axis=1) / seeds
    else:
        sums = chosen @ values[0]
    drawn = sums / (chosen @ weights)
    tail = NormalDist().cdf(-_reach(questions, tail))
    tail = max(0.0, tail - 2 * math.sqrt(tail * (1 - tail) / len(drawn)))
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(estimate, float(low), float(high))


@functools.lru_cache(maxsize=8)
def _draws(count: int, seed: int) -> Float64Array:
    """How often each of some questions or seeds is in each draw, shape (draws, count)."""
    draws = min(_DRAWS, max(_LEAST_DRAWS, _MOST_NUMBERS // count))
    found = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), draws)
    return found.astype(np.float64)


@functools.cache
def _reach(count: int, tail: float) -> float:
    """Standard deviations of draws from so many, beyond which a tail of estimates lies."""
    stats = need("scipy.stats", "the intervals of a comparison")
    return float(math.sqrt(count / (count - 1)) * stats.t.isf(tail, count - 1))
