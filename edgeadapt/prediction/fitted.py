"""The values that measurements gave the open factors, with their spread: `fitted.json`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeadapt.prediction.physics import PRIORS, Lookup

Array = npt.NDArray[np.float64]

_STEP = 1e-4


def prior(name: str) -> tuple[float, float]:
    """Mean and standard deviation of a factor's logarithm before any measurement."""
    return PRIORS[name.partition("=")[0]]


@dataclass(frozen=True)
class Fitted:
    """Factors after the measurements: a normal distribution of their logarithms."""

    names: tuple[str, ...]
    means: Array
    """Shape (names,)."""
    covariance: Array
    """Shape (names, names)."""
    noise: dict[str, float]
    """Backend -> standard deviation of a measurement's logarithm around the formula: repetition,
    and what differs between one source's set-up and the next's."""
    widening: dict[str, float]
    """Backend -> factor on the standard deviation, so that the interval holds what it says when
    each source is predicted from the others."""

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.names)}

    def mean(self, name: str) -> float:
        """Mean of a factor's logarithm: fitted, or its prior's."""
        index = self._index.get(name)
        return prior(name)[0] if index is None else float(self.means[index])

    def predict(self, formula: Callable[[Lookup], float], backend: str) -> tuple[float, float]:
        """Mean and standard deviation of the logarithm that `formula` gives.

        First order in the factors; those that no measurement speaks of add their prior's spread.
        """
        value, slopes = gradient(formula, self.mean)
        known = np.zeros(len(self.names))
        variance = self.noise[backend] ** 2
        for name, slope in slopes.items():
            if name in self._index:
                known[self._index[name]] = slope
            else:
                variance += (slope * prior(name)[1]) ** 2
        variance += float(known @ self.covariance @ known)
        return value, float(np.sqrt(variance)) * self.widening.get(backend, 1.0)

    def record(self) -> dict[str, Any]:
        """As it is written to a file: mean and spread by name, and the lower triangle of the
        correlation in thousandths, a line of text each row."""
        spread = np.sqrt(np.diag(self.covariance))
        correlation = self.covariance / np.outer(spread, spread)
        return {
            "factors": {
                name: [round(float(mean), 4), round(float(sd), 4)]
                for name, mean, sd in zip(self.names, self.means, spread, strict=True)
            },
            "correlation": [
                " ".join(str(round(float(value) * 1000)) for value in row[:index])
                for index, row in enumerate(correlation)
            ],
            "noise": {name: round(value, 4) for name, value in self.noise.items()},
            "widening": {name: round(value, 3) for name, value in self.widening.items()},
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Fitted:
        """Back from `record`."""
        names = tuple(record["factors"])
        table = np.array(list(record["factors"].values()), dtype=np.float64).reshape(-1, 2)
        correlation = np.eye(len(names))
        for index, row in enumerate(record["correlation"]):
            correlation[index, :index] = correlation[:index, index] = (
                np.array(row.split(), dtype=np.float64) / 1000
            )
        covariance = correlation * np.outer(table[:, 1], table[:, 1])
        return cls(names, table[:, 0], covariance, record["noise"], record["widening"])


def gradient(
    formula: Callable[[Lookup], float], mean: Callable[[str], float]
) -> tuple[float, dict[str, float]]:
    """A formula's value at the factors' means, and its slope along each that it asks for."""
    asked: dict[str, float] = {}

    def note(name: str) -> float:
        return asked.setdefault(name, mean(name))

    value = formula(note)

    def moved(which: str) -> float:
        return formula(lambda name: asked[name] + (_STEP if name == which else 0.0))

    return value, {name: (moved(name) - value) / _STEP for name in list(asked)}


@cache
def load_fitted(quantity: str) -> Fitted:
    """The shipped values for `decode` or `prefill`."""
    text = (files("edgeadapt.prediction") / "fitted.json").read_text(encoding="utf-8")
    return Fitted.from_record(json.loads(text)[quantity])
