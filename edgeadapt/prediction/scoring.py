"""How good predictions are, against measurements."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeadapt.prediction.fitted import Fitted
from edgeadapt.prediction.predict import Interval, decode_speed, prefill_speed
from edgeadapt.prediction.rows import Row


@dataclass(frozen=True)
class Scored:
    """A row's measured and predicted speed, tokens a second."""

    row: Row
    measured: float
    predicted: Interval

    @property
    def error(self) -> float:
        """Of the median, against what was measured; 0.1 is ten percent off."""
        return abs(self.predicted.median / self.measured - 1)


def score_row(row: Row, quantity: str, fitted: Fitted | None = None) -> Scored | None:
    """Predict a row's `decode` or `prefill` speed; None if it has none measured."""
    if quantity == "decode":
        measured = row.decode_tps
        predict = decode_speed(
            row.hardware, row.workload, row.runtime, threads=row.threads, fitted=fitted
        )
    else:
        measured = row.prefill_tps
        predict = prefill_speed(
            row.hardware, row.workload, row.runtime, tokens=row.prompt_tokens,
            threads=row.threads, fitted=fitted,
        )  # fmt: skip
    return None if measured is None else Scored(row, measured, predict)


def summary(scored: Sequence[Scored]) -> dict[str, Any]:
    """Errors, coverage and width over rows; null where there are none."""
    if not scored:
        return {
            "rows": 0, "median_error": None, "p90_error": None, "coverage_80": None,
            "median_interval_width": None,
        }  # fmt: skip
    errors = [item.error for item in scored]
    return {
        "rows": len(scored),
        "median_error": round(float(np.median(errors)), 4),
        "p90_error": round(float(np.quantile(errors, 0.9)), 4),
        "coverage_80": round(float(np.mean([s.measured in s.predicted for s in scored])), 4),
        "median_interval_width": round(float(np.median([s.predicted.width for s in scored])), 3),
    }


def groups(scored: Iterable[Scored]) -> dict[str, list[Scored]]:
    """Rows by what computed."""
    result: dict[str, list[Scored]] = {"cpu": [], "gpu": [], "npu": []}
    for item in scored:
        result[item.row.hardware.backend].append(item)
    return result
