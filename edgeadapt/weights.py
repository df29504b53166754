"""A model's tensors, each produced on demand.

`WeightSource` is what every converter reads. Whether a tensor lies in a file as it is, or was
merged with an adapter a moment ago, is the source's business alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgeadapt.errors import CorruptFileError, UnsupportedError

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TensorInfo:
    """One tensor, described without reading it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """Stored type in safetensors' spelling: F32, F16, BF16, ..."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)


class TensorReader(Protocol):
    """Named tensors whose values are always float32, whatever the stored type.

    They are read in row chunks so that nobody needs a whole embedding in memory.
    """

    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor by name, in stored order."""
        ...

    def rows(self, name: str, start: int, stop: int) -> Float32Array:
        """Rows [start, stop) along the first axis, float32, shape (stop - start, ...).

        Safe to call from several threads at once.
        """
        ...


class WeightSource(TensorReader, Protocol):
    """All the tensors of a model, in Hugging Face naming."""

    @property
    def config(self) -> dict[str, Any]:
        """The model's `config.json`, as it must read for exactly these tensors."""
        ...


@dataclass(frozen=True)
class LowRankUpdate:
    """What a LoRA adds to one tensor: scale * B @ A, kept apart from the weight."""

    name: str
    """The tensor that it changes, in Hugging Face naming."""
    rank: int
    scale: float
    embedding: bool
    """The tensor is a lookup table, stored (tokens, width): the product is transposed."""
    read: Callable[[], tuple[Float32Array, Float32Array]]
    """A of shape (rank, inputs) and B of shape (outputs, rank)."""


HEAD = "lm_head.weight"


def is_tied(source: WeightSource) -> bool:
    """Whether the head is the embedding; a model that has no head must be, whatever it says."""
    return HEAD not in source.tensors() or bool(source.config.get("tie_word_embeddings", False))


def find_embedding(source: WeightSource) -> str:
    """Name of the input embedding's tensor.

    Raises:
        UnsupportedError: there is none by a known name.
    """
    for name in source.tensors():
        if re.search(r"(^|\.)(embed_tokens|wte|word_embeddings)\.weight$", name):
            return name
    raise UnsupportedError("the base has no token embedding by a name that edgeadapt knows")


def read_tensor(source: TensorReader, name: str) -> Float32Array:
    """A whole tensor as float32."""
    shape = source.tensors()[name].shape
    return source.rows(name, 0, shape[0] if shape else 1)


def row_chunks(info: TensorInfo, max_bytes: int = 8 << 20) -> Iterator[tuple[int, int]]:
    """Split a tensor into row ranges of at most `max_bytes` of float32 (at least one row)."""
    rows = info.shape[0] if info.shape else 1
    row_bytes = 4 * max(1, info.size // max(1, rows))
    step = max(1, max_bytes // row_bytes)
    for start in range(0, rows, step):
        yield start, min(rows, start + step)


def parameter_count(source: WeightSource) -> int:
    """Parameters of a model, embeddings included."""
    return sum(info.size for info in source.tensors().values())


def kv_bytes_per_token(config: dict[str, Any]) -> int:
    """Bytes that one token takes in a 16-bit KV cache, over all layers.

    Raises:
        CorruptFileError: the config does not say how many layers and heads there are.
    """
    try:
        heads = int(config["num_attention_heads"])
        kv_heads = int(config.get("num_key_value_heads") or heads)
        head_dim = int(config.get("head_dim") or int(config["hidden_size"]) // heads)
        return 2 * 2 * int(config["num_hidden_layers"]) * kv_heads * head_dim
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise CorruptFileError(
            f"config.json does not give the size of the KV cache ({error}); expected "
            "num_hidden_layers, num_attention_heads and hidden_size"
        ) from error
