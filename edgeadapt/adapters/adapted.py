"""What every way of putting an adapter into a base's weights gives."""

from __future__ import annotations

from typing import Protocol

from edgeadapt.adapters.spec import AdapterSpec
from edgeadapt.weights import WeightSource


class AdaptedSource(WeightSource, Protocol):
    """A base with one adapter in it."""

    spec: AdapterSpec

    @property
    def changed(self) -> frozenset[str]:
        """Tensors that are not the base's."""
        ...

    @property
    def replaced(self) -> frozenset[str]:
        """Tensors of which the adapter holds a copy, or copies of some rows."""
        ...
