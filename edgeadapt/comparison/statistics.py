"""Differences between contenders, question by question, with bootstrap intervals.

Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 8 and 13: whole questions
are drawn with replacement (whole groups of them, where questions have something in common); the
interval is that of percentiles. Draws from a few vary less than these do, so the percentiles are
those of the expanded interval (Hesterberg, What Teachers Should Know About the Bootstrap, The
American Statistician 69, 2015).

Seeds are too few to be drawn from: of two there are three different draws. What differs between
them is added as Student's t has it for the mean of so many normally distributed values.
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
    chosen = _draws(questions)
    middle = values.mean(axis=0)
    if seeds > 1:
        sums = ((middle + _student(seeds, len(chosen)) @ (values - middle)) * chosen).sum(axis=1)
    else:
        sums = chosen @ middle
    drawn = sums / (chosen @ weights)
    tail = NormalDist().cdf(-_reach(questions, tail))
    tail = max(0.0, tail - 2 * math.sqrt(tail * (1 - tail) / len(drawn)))
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(estimate, float(low), float(high))


@functools.lru_cache(maxsize=8)
def _draws(count: int) -> Float64Array:
    """How often each of some questions is in each draw, shape (draws, count)."""
    draws = min(_DRAWS, max(_LEAST_DRAWS, _MOST_NUMBERS // count))
    found = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), draws)
    return found.astype(np.float64)


@functools.lru_cache(maxsize=8)
def _student(seeds: int, draws: int) -> Float64Array:
    """Weights of what seeds differ by from their mean, shape (draws, seeds).

    Weighted so, normally distributed values give their mean's error, in units of its estimate as
    Student's t is distributed.
    """
    random = np.random.default_rng(1)
    normal = random.standard_normal((draws, seeds)) / math.sqrt(seeds * (seeds - 1))
    scale = np.sqrt((seeds - 1) / random.chisquare(seeds - 1, (draws, 1)))
    weights: Float64Array = normal * scale
    return weights


@functools.cache
def _reach(count: int, tail: float) -> float:
    """Standard deviations of draws from so many, beyond which a tail of estimates lies."""
    stats = need("scipy.stats", "the intervals of a comparison")
    return float(math.sqrt(count / (count - 1)) * stats.t.isf(tail, count - 1))
