"""Differences between contenders, question by question, with bootstrap intervals.

Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 8 and 13: whole questions
are drawn with replacement, and whole seeds where there are several; the interval is that of
percentiles. Questions count as independent of each other.

Draws from two or three seeds vary less than seeds do. What differs between seeds is therefore
enlarged before, by sqrt(n / (n - 1)) and by what Student's t has above the normal distribution.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]

LEVEL = 0.95
_DRAWS = 20_000
_MOST_NUMBERS = 1 << 23
"""Draws times questions: memory."""
_LEAST_DRAWS = 4000
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t at 97.5%, for 1, 2, ... degrees of freedom."""
_NORMAL = 1.960


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


def interval(values: Float64Array, weights: Float64Array, *, among: int = 1) -> Interval:
    """sum(values) / sum(weights) over questions, the mean over seeds.

    The ends lie further out by twice the standard error that they have from the number of draws,
    so that no other draws would have decided what these did not.

    Args:
        values: shape (seeds, questions).
        weights: of each question, shape (questions,): its tokens, or 1.
        among: of how many intervals, looked at together, this is one: all of them shall hold with
            a probability of `LEVEL` (Bonferroni).
    """
    seeds, questions = values.shape
    estimate = float(values.mean(axis=0).sum() / weights.sum())
    chosen = _draws(questions, 0)
    if seeds > 1:
        values = _enlarged(values)
        rows = _draws(seeds, 1)[: len(chosen)]
        sums = ((rows @ values) * chosen).sum(axis=1) / seeds
    else:
        sums = chosen @ values[0]
    drawn = sums / (chosen @ weights)
    tail = (1 - LEVEL) / 2 / among
    tail = max(0.0, tail - 2 * math.sqrt(tail * (1 - tail) / len(drawn)))
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(estimate, float(low), float(high))


@functools.lru_cache(maxsize=4)
def _draws(count: int, seed: int) -> Float64Array:
    """How often each of some questions or seeds is in each draw, shape (draws, count)."""
    draws = min(_DRAWS, max(_LEAST_DRAWS, _MOST_NUMBERS // count))
    found = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), draws)
    return found.astype(np.float64)


def _enlarged(values: Float64Array) -> Float64Array:
    """With a spread over seeds that draws of them do justice to; see the module."""
    freedom, middle = len(values) - 1, values.mean(axis=0)
    student = _STUDENT[freedom - 1] if freedom <= len(_STUDENT) else _NORMAL
    enlarged: Float64Array = middle + (values - middle) * (
        math.sqrt((freedom + 1) / freedom) * student / _NORMAL
    )
    return enlarged
