"""KV caches for plain onnxruntime: allocated once, and bound so that nothing is copied."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeadapt.errors import RuntimeFailure, UnsupportedError

_DTYPES: dict[str, type[np.floating[Any]]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
}


def tensor_dtype(text: str) -> type[np.floating[Any]]:
    """NumPy's type for onnxruntime's name of it.

    Raises:
        UnsupportedError: it is neither float32 nor float16.
    """
    if text not in _DTYPES:
        raise UnsupportedError(f"the graph computes in {text}; only float32 and float16 run here")
    return _DTYPES[text]


@dataclass(frozen=True)
class CacheShape:
    """Shape of each tensor of a cache: (batch, heads, tokens, size)."""

    heads: int
    size: int
    context: int
    """Tokens that must fit."""
    batch: int = 1

    def of(self, tokens: int) -> tuple[int, int, int, int]:
        """Shape with so many tokens."""
        return (self.batch, self.heads, tokens, self.size)


class KvCache(abc.ABC):
    """Keys and values of each layer, bound to a session's inputs and outputs."""

    def __init__(self, names: Mapping[str, str], shape: CacheShape, dtype: npt.DTypeLike) -> None:
        self._names, self._shape = names, shape
        self._dtype = np.dtype(dtype)

    @property
    def dtype(self) -> str:
        """NumPy's name of what is stored."""
        return self._dtype.name

    @abc.abstractmethod
    def bind(self, binding: Any, past: int, new: int) -> None:
        """Bind for a run that extends `past` tokens by `new` ones."""

    @abc.abstractmethod
    def fill(self, values: Mapping[str, npt.NDArray[Any]]) -> None:
        """Begin with keys and values, each of shape (1, heads, tokens, size), by past input."""

    @abc.abstractmethod
    def past(self, tokens: int) -> Iterator[npt.NDArray[Any]]:
        """The first `tokens` positions, each array of shape (1, heads, tokens, size), by input."""

    @abc.abstractmethod
    def done(self) -> None:
        """The run succeeded: what was written is the past of the next one."""

    def dump(self, tokens: int) -> bytes:
        """The first `tokens` positions as bytes, one input after another."""
        return b"".join(part.tobytes() for part in self.past(tokens))

    def restore(self, data: bytes) -> int:
        """Begin with what `dump` gave; returns how many positions that are.

        Raises:
            RuntimeFailure: it is not of a cache like this one, or longer.
        """
        each = len(self._names) * int(np.prod(self._shape.of(1))) * self._dtype.itemsize
        tokens, rest = divmod(len(data), each)
        if rest or tokens > self._shape.context:
            raise RuntimeFailure(
                f"{len(data)} bytes are no state of a KV cache with {each} bytes a position and "
                f"room for {self._shape.context}"
            )
        parts = np.frombuffer(data, self._dtype).reshape(len(self._names), *self._shape.of(tokens))
        self.fill(dict(zip(self._names, parts, strict=True)))
        return tokens


class SharedCache(KvCache):
    """One buffer for past and present, for graphs whose attention writes into it in place.

    `GroupQueryAttention` does; how many positions count follows from the attention mask.
    """

    def __init__(
        self, ort: Any, names: Mapping[str, str], shape: CacheShape, dtype: npt.DTypeLike
    ) -> None:
        super().__init__(names, shape, dtype)
        whole = shape.of(shape.context)
        self._arrays = {past: np.zeros(whole, self._dtype) for past in names}
        self._buffers = {  # on the CPU these are the arrays themselves, not copies
            past: ort.OrtValue.ortvalue_from_numpy(array) for past, array in self._arrays.items()
        }
        self._bound: Any = None

    def bind(self, binding: Any, past: int, new: int) -> None:
        """Bind once; see `KvCache.bind`."""
        if self._bound is binding:
            return
        for name, buffer in self._buffers.items():
            binding.bind_ortvalue_input(name, buffer)
            binding.bind_ortvalue_output(self._names[name], buffer)
        self._bound = binding

    def fill(self, values: Mapping[str, npt.NDArray[Any]]) -> None:
        """Copy into the buffers; see `KvCache.fill`."""
        for name, given in values.items():
            self._arrays[name][:, :, : given.shape[2]] = given

    def past(self, tokens: int) -> Iterator[npt.NDArray[Any]]:
        """See `KvCache.past`."""
        for array in self._arrays.values():
            yield array[:, :, :tokens]

    def done(self) -> None:
        """Nothing to do: the buffer is past and present."""


class AlternatingCache(KvCache):
    """Two buffers in turn, for graphs that append to a past and give all of it back."""

    def __init__(self, names: Mapping[str, str], shape: CacheShape, dtype: npt.DTypeLike) -> None:
        super().__init__(names, shape, dtype)
        count = int(np.prod(shape.of(shape.context)))
        self._past, self._present = (
            {name: np.zeros(count, self._dtype) for name in names} for _ in range(2)
        )

    def bind(self, binding: Any, past: int, new: int) -> None:
        """Bind parts of the buffers as long as the run needs; see `KvCache.bind`."""
        before, after = self._shape.of(past), self._shape.of(past + new)
        for name, output in self._names.items():
            binding.bind_input(name, "cpu", 0, self._dtype, before, self._past[name].ctypes.data)
            binding.bind_output(
                output, "cpu", 0, self._dtype, after, self._present[name].ctypes.data
            )

    def fill(self, values: Mapping[str, npt.NDArray[Any]]) -> None:
        """Copy into the next run's past; see `KvCache.fill`."""
        for name, given in values.items():
            self._past[name][: given.size] = given.reshape(-1)

    def past(self, tokens: int) -> Iterator[npt.NDArray[Any]]:
        """See `KvCache.past`."""
        shape = self._shape.of(tokens)
        for array in self._past.values():
            yield array[: int(np.prod(shape))].reshape(shape)

    def done(self) -> None:
        """Swap the buffers."""
        self._past, self._present = self._present, self._past


def cache_names(decoder: Mapping[str, Any]) -> dict[str, str]:
    """Past input to present output, for keys and values of every layer.

    Args:
        decoder: the `model.decoder` section of genai_config.json.
    """
    return {
        decoder["inputs"][f"past_{kind}_names"] % layer: decoder["outputs"][f"present_{kind}_names"]
        % layer
        for layer in range(decoder["num_hidden_layers"])
        for kind in ("key", "value")
    }
