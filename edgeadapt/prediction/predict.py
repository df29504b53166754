"""Tokens a second, always as an interval."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgeadapt.prediction.fitted import Fitted, load_fitted
from edgeadapt.prediction.hardware import Hardware
from edgeadapt.prediction.physics import decode_log_speed, prefill_log_speed, runtime_key
from edgeadapt.prediction.workload import Workload

_Z80 = 1.2815515655446004
"""Normal quantile: 10% of the values lie above."""


@dataclass(frozen=True)
class Interval:
    """A prediction, in tokens a second unless said otherwise: its median, and bounds that hold
    four cases of five."""

    median: float
    low: float
    high: float

    @property
    def width(self) -> float:
        """Upper over lower bound; 1 would be certainty."""
        return self.high / self.low

    def seconds_for(self, tokens: float) -> Interval:
        """How long so many tokens take at this speed, in seconds."""
        return Interval(tokens / self.median, tokens / self.high, tokens / self.low)

    def record(self) -> dict[str, float]:
        """As JSON."""
        return {"low": self.low, "median": self.median, "high": self.high}

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{_short(self.low)}-{_short(self.high)}"


def decode_speed(
    hardware: Hardware,
    workload: Workload,
    runtime: str,
    *,
    threads: int | None = None,
    fitted: Fitted | None = None,
) -> Interval:
    """Decoded tokens a second, one sequence.

    Args:
        hardware: what computes.
        workload: the model at its quantization and depth.
        runtime: an engine's name, or how a table of measurements calls it.
        threads: of a CPU; its fast cores if None.
        fitted: factors to use; the shipped ones if None.
    """
    key = runtime_key(runtime)
    return _interval(
        *(fitted or load_fitted("decode")).predict(
            lambda get: decode_log_speed(hardware, workload, key, threads, get), hardware.backend
        )
    )


def prefill_speed(
    hardware: Hardware,
    workload: Workload,
    runtime: str,
    *,
    tokens: int = 512,
    threads: int | None = None,
    fitted: Fitted | None = None,
) -> Interval:
    """Prompt tokens a second for a prompt of `tokens`; otherwise as `decode_speed`."""
    key = runtime_key(runtime)
    return _interval(
        *(fitted or load_fitted("prefill")).predict(
            lambda get: prefill_log_speed(hardware, workload, key, threads, tokens, get),
            hardware.backend,
        )
    )


def _interval(mean: float, spread: float) -> Interval:
    reach = _Z80 * spread
    return Interval(math.exp(mean), math.exp(mean - reach), math.exp(mean + reach))


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"
