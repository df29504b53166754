"""The state of a llama.cpp sequence, and a prefix as one.

What the state of n tokens looks like is asked of the library: n tokens are run, and what
`llama_state_seq_get_data` gives is taken apart, checked to the last byte and given back with other
keys and values. Its layout in llama.cpp (src/llama-kv-cache.cpp, state_write): magic, sequence,
streams; cells, each with its position, how many sequences and which; whether V is transposed, and
layers; for each layer K's type, bytes of a row and rows; then for each layer V's, or if transposed
its type, element size and width, and the elements channel by channel. All little endian.
"""

from __future__ import annotations

import ctypes
import struct
from typing import Any

import numpy as np

from edgeadapt.errors import RuntimeFailure, UnsupportedError
from edgeadapt.prefix import Prefix
from edgeadapt.weights import Float32Array

_FLOATS = {0: "<f4", 1: "<f2"}
"""`enum ggml_type` in ggml.h -> how its elements are stored."""
_ROPE_NORMAL = 0
"""`enum llama_rope_type`: neighbours are rotated together."""
_REORDERED = frozenset({"llama", "smollm3", "granite"})
"""Architectures with that type whose converters reorder the rows of Q and K for it; those of others
have their neighbours side by side already, or we do not know."""


def check_model(lib: Any, model: Any) -> None:
    """See that a model's layers all attend to the whole of one KV cache.

    Raises:
        UnsupportedError: they do not.
    """
    if lib.llama_model_n_swa(model) > 0:
        raise UnsupportedError(
            "a prefix on llama.cpp needs layers that attend to everything, and this model has "
            "layers with a sliding window; run it on onnxruntime"
        )
    if lib.llama_model_is_recurrent(model) or lib.llama_model_is_hybrid(model):
        raise UnsupportedError("this model keeps a state other than a KV cache")


def cache_shape(lib: Any, model: Any) -> tuple[int, int, int]:
    """Layers, KV heads and head size of a model's KV cache."""
    size = _metadata(lib, model, f"{_architecture(lib, model)}.attention.key_length")
    heads = int(lib.llama_model_n_head(model))
    return (
        int(lib.llama_model_n_layer(model)),
        int(lib.llama_model_n_head_kv(model)),
        int(size) if size else int(lib.llama_model_n_embd(model)) // heads,
    )


def rope_range(lib: Any, model: Any, context: int) -> str:
    """Which of two sets of rope factors a context takes, where a model has two.

    llama.cpp chooses them by the size of the context, not by the tokens in it (src/llama-model.cpp,
    get_rope_factors), so that keys of one do not go with queries of the other.
    """
    key = f"{_architecture(lib, model)}.rope.scaling.original_context_length"
    original = _metadata(lib, model, key)
    return "long" if original and context > int(original) else "usual"


def is_reordered(rope_type: int, architecture: str) -> bool:
    """Whether a GGUF file holds the dimensions of K in another order than transformers.

    Raises:
        UnsupportedError: it is not known.
    """
    if rope_type == _ROPE_NORMAL and architecture not in _REORDERED:
        raise UnsupportedError(
            f"in which order {architecture!r} files hold the dimensions of their keys is not known "
            "here, so they cannot start from a prefix; run it on onnxruntime"
        )
    return rope_type == _ROPE_NORMAL


def _architecture(lib: Any, model: Any) -> str:
    return _metadata(lib, model, "general.architecture")


def _metadata(lib: Any, model: Any, key: str) -> str:
    """A value of the file's metadata as text; empty if there is none."""
    text = ctypes.create_string_buffer(64)
    lib.llama_model_meta_val_str(model, key.encode(), text, len(text))
    return text.value.decode("utf-8", "replace")


def sequence_state(lib: Any, context: Any, sequence: int) -> bytes:
    """A sequence's state.

    Raises:
        RuntimeFailure: llama.cpp gave none.
    """
    size = int(lib.llama_state_seq_get_size(context, sequence))
    buffer = (ctypes.c_uint8 * size)()
    if int(lib.llama_state_seq_get_data(context, buffer, size, sequence)) != size:
        raise RuntimeFailure("llama.cpp gave no state of its sequence")
    return bytes(buffer)


def restore(lib: Any, context: Any, sequence: int, state: bytes) -> None:
    """Make a state the sequence's own.

    Raises:
        RuntimeFailure: llama.cpp did not take it.
    """
    buffer = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
    taken = int(lib.llama_state_seq_set_data(context, buffer, len(state), sequence))
    if taken != len(state):
        raise RuntimeFailure(f"llama.cpp took {taken} of the {len(state)} bytes of a state")


def with_prefix(lib: Any, model: Any, state: bytes, prefix: Prefix) -> bytes:
    """The state of as many tokens, with the prefix's keys and values in place of theirs.

    Raises:
        UnsupportedError: the state is laid out in another way than this module knows.
    """
    reader = _Reader(state)
    _, _, streams, cells = reader.take("<4I")
    reader.expect(streams == 1 and cells == prefix.tokens)
    for position in range(cells):
        reader.expect(reader.take("<3i")[:2] == (position, 1))
    transposed, layers = reader.take("<2I")
    reader.expect(layers == len(prefix.keys))
    keys = prefix.keys
    if is_reordered(lib.llama_model_rope_type(model), _architecture(lib, model)):
        keys = _interleaved(keys)
    for layer in range(layers):
        kind, row_bytes = reader.take("<iQ")
        reader.replace(kind, _rows(keys[layer]), row_bytes * cells)
    for layer in range(layers):
        rows = _rows(prefix.values[layer])
        if transposed:
            kind, element, width = reader.take("<iII")
            reader.replace(kind, np.ascontiguousarray(rows.T), element * width * cells)
        else:
            kind, row_bytes = reader.take("<iQ")
            reader.replace(kind, rows, row_bytes * cells)
    reader.expect(reader.at_end)
    return bytes(reader.data)


def _interleaved(keys: Float32Array) -> Float32Array:
    """As the rows of K's weight are reordered: the two halves of each head by turns."""
    *others, size = keys.shape
    halves = keys.reshape(*others, 2, size // 2)
    return np.ascontiguousarray(np.swapaxes(halves, -1, -2)).reshape(keys.shape)


def _rows(layer: Float32Array) -> Float32Array:
    """(heads, tokens, size) as one row for each token."""
    heads, tokens, size = layer.shape
    return np.ascontiguousarray(layer.transpose(1, 0, 2)).reshape(tokens, heads * size)


class _Reader:
    """Goes through a copy of a state and changes it on the way."""

    def __init__(self, state: bytes) -> None:
        self.data = bytearray(state)
        self._at = 0

    @property
    def at_end(self) -> bool:
        return self._at == len(self.data)

    def expect(self, holds: bool) -> None:
        if not holds:
            raise UnsupportedError(
                "this version of llama.cpp lays out its state in a way that edgeadapt does not "
                "know, so it cannot start from a prefix; type: edgeadapt setup llama-cpp"
            )

    def take(self, layout: str) -> tuple[int, ...]:
        self.expect(self._at + struct.calcsize(layout) <= len(self.data))
        found: tuple[int, ...] = struct.unpack_from(layout, self.data, self._at)
        self._at += struct.calcsize(layout)
        return found

    def replace(self, kind: int, values: Float32Array, size: int) -> None:
        self.expect(kind in _FLOATS)
        stored = values.astype(_FLOATS[kind]).tobytes()
        self.expect(len(stored) == size and self._at + size <= len(self.data))
        self.data[self._at : self._at + size] = stored
        self._at += size
