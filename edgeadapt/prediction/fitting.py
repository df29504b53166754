"""From measurements to factors: the most probable values, and how sure they are.

Factors start at their priors and are moved as far as the measurements pull. What one source does
differently from the others (cooling, clocks, versions) is a factor of its own that prediction does
not get to use: it counts as noise there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edgeadapt.prediction.fitted import Array, Fitted, gradient, prior
from edgeadapt.prediction.physics import (
    Lookup,
    decode_log_speed,
    prefill_log_speed,
    runtime_key,
)
from edgeadapt.prediction.rows import Row

SOURCE_SPREAD = {
    "decode": {"cpu": 0.18, "gpu": 0.22, "npu": 0.2},
    "prefill": {"cpu": 0.3, "gpu": 0.3, "npu": 0.3},
}
"""Standard deviation of what a source does differently, by backend."""
ROW_SPREAD = {
    "decode": {"cpu": 0.1, "gpu": 0.12, "npu": 0.12},
    "prefill": {"cpu": 0.2, "gpu": 0.25, "npu": 0.25},
}
"""Standard deviation from one row to the next in one source."""

_ROBUST = 2.0
"""Standard deviations beyond which a row pulls no harder (Huber's weights)."""
_ROUNDS = 40


@dataclass(frozen=True)
class Observation:
    """One measured logarithm, and the formula for it."""

    value: float
    formula: Callable[[Lookup], float]
    backend: str
    source: str


def observation(row: Row, quantity: str) -> Observation | None:
    """A row's decode or prefill speed, if it has one and is to be believed."""
    measured = row.decode_tps if quantity == "decode" else row.prefill_tps
    if measured is None or row.suspect:
        return None
    key = runtime_key(row.runtime)

    def formula(get: Lookup) -> float:
        if quantity == "decode":
            return decode_log_speed(row.hardware, row.workload, key, row.threads, get)
        return prefill_log_speed(
            row.hardware, row.workload, key, row.threads, row.prompt_tokens, get
        )

    return Observation(float(np.log(measured)), formula, row.hardware.backend, row.source)


def fit(observations: Sequence[Observation], quantity: str) -> Fitted:
    """The most probable factors, by Gauss-Newton steps, and their covariance there."""
    between, within = SOURCE_SPREAD[quantity], ROW_SPREAD[quantity]
    names = _all_names(observations)
    index = {name: place for place, name in enumerate(names)}
    priors = np.array([_prior(name, between) for name in names]).reshape(-1, 2)
    center, precision = priors[:, 0], priors[:, 1] ** -2.0
    theta = center.copy()
    noise = np.array([within[o.backend] for o in observations])
    for _ in range(_ROUNDS):
        residual, slopes = _linearize(observations, theta, index)
        far = np.maximum(np.abs(residual) / noise / _ROBUST, 1.0)
        weight = 1 / (noise**2 * far)
        hessian = slopes.T @ (slopes * weight[:, None]) + np.diag(precision)
        step = np.linalg.solve(
            hessian, slopes.T @ (weight * residual) - precision * (theta - center)
        )
        theta = theta + np.clip(step, -0.3, 0.3)
        if np.abs(step).max(initial=0.0) < 1e-3:
            break
    covariance = np.linalg.inv(hessian)
    kept = [place for place, name in enumerate(names) if not name.startswith("source")]
    return Fitted(
        names=tuple(names[place] for place in kept),
        means=theta[kept],
        covariance=covariance[np.ix_(kept, kept)],
        noise={kind: float(np.hypot(between[kind], within[kind])) for kind in between},
        widening={},
    )


def _prior(name: str, between: dict[str, float]) -> tuple[float, float]:
    if name.startswith("source"):
        return 0.0, between[name.split("/")[1]]
    return prior(name)


def _source_name(observation: Observation) -> str:
    return f"source/{observation.backend}/{observation.source}"


def _all_names(observations: Sequence[Observation]) -> list[str]:
    names: set[str] = set()
    for o in observations:
        names.add(_source_name(o))
        o.formula(lambda name: names.add(name) or prior(name)[0])  # type: ignore[func-returns-value]
    return sorted(names)


def _linearize(
    observations: Sequence[Observation], theta: Array, index: dict[str, int]
) -> tuple[Array, Array]:
    """What is left of each value, shape (rows,), and slopes, shape (rows, factors)."""
    residual = np.zeros(len(observations))
    slopes = np.zeros((len(observations), len(index)))
    for row, o in enumerate(observations):
        value, found = gradient(o.formula, lambda name: float(theta[index[name]]))
        own = index[_source_name(o)]
        slopes[row, own] = 1.0
        for name, slope in found.items():
            slopes[row, index[name]] = slope
        residual[row] = o.value - value - theta[own]
    return residual, slopes
