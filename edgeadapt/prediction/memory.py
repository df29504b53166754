"""Memory that a model takes while it runs."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 1 << 30

KV_WIDTH = {"gguf": 1, "onnx": 2}
"""The KV cache against float16: llama.cpp's default is float16, exported CPU graphs use float32."""

_ENGINE = 160 << 20
"""An engine's code and its interpreter."""
_WORK = 0.04
"""Graph and work buffers against the weights' bytes."""


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes by what they are for."""

    weights: float
    cache: float
    overhead: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.cache + self.overhead

    @property
    def gib(self) -> float:
        """All of it in GiB."""
        return self.total / GIB


def memory_needed(weights: float, kv_bytes: float, format: str) -> MemoryNeed:
    """What an engine takes for `weights` bytes and a cache of `kv_bytes` at float16."""
    return MemoryNeed(weights, kv_bytes * KV_WIDTH.get(format, 2), _ENGINE + _WORK * weights)
