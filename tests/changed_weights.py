"""Models whose tensors are changed as they are read: damage to plant in tests."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeadapt.weights import Float32Array, TensorInfo, WeightSource


class Changed:
    """A model whose tensors are changed as they are read."""

    def __init__(self, source: WeightSource) -> None:
        self._source = source

    @property
    def config(self) -> dict[str, Any]:
        return self._source.config

    def tensors(self) -> dict[str, TensorInfo]:
        return self._source.tensors()

    def rows(self, name: str, start: int, stop: int) -> Float32Array:
        return self.change(name, self._source.rows(name, start, stop))

    def change(self, name: str, rows: Float32Array) -> Float32Array:
        raise NotImplementedError


class Zeroed(Changed):
    """One layer is all zeros."""

    def __init__(self, source: WeightSource, layer: int) -> None:
        super().__init__(source)
        self._prefix = f"model.layers.{layer}."

    def change(self, name: str, rows: Float32Array) -> Float32Array:
        return np.zeros_like(rows) if name.startswith(self._prefix) else rows
