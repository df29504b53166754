"""Differences between contenders, question by question, with bootstrap intervals.

Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 8 and 13: whole questions
are drawn with replacement, and whole seeds where there are several; the interval is that of
percentiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]

LEVEL = 0.95
_DRAWS = 2000


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


def interval(values: Float64Array, weights: Float64Array) -> Interval:
    """sum(values) / sum(weights) over questions, the mean over seeds.

    Args:
        values: shape (seeds, questions).
        weights: of each question, shape (questions,): its tokens, or 1.
    """
    seeds, questions = values.shape
    estimate = float(values.mean(axis=0).sum() / weights.sum())
    random = np.random.default_rng(0)
    # How often each question, and each seed, is in each draw: shapes (draws, questions or seeds).
    chosen = random.multinomial(questions, np.full(questions, 1 / questions), _DRAWS)
    rows = random.multinomial(seeds, np.full(seeds, 1 / seeds), _DRAWS)
    sums = ((rows @ values) * chosen).sum(axis=1) / seeds
    drawn = sums / (chosen @ weights)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(estimate, float(low), float(high))
