"""One loaded GGUF model with one sequence, over llama.h's functions through ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeadapt.chat_template import Message
from edgeadapt.errors import InputError, RuntimeFailure
from edgeadapt.prefix import Prefix, is_prefix, read_prefix
from edgeadapt.runtimes.base import EngineFacts, Float32Array, Session
from edgeadapt.runtimes.llama_cpp import library, state
from edgeadapt.runtimes.llama_cpp.text import LlamaCppText

_LOGIT_ROWS = 256
"""Positions whose logits are taken at once; at a vocabulary of 128k that is 128 MiB."""
_SEQUENCE = 0


class LlamaCppSession(Session):
    """See `Session`. Owns the C model and context it is given; `close` frees them."""

    def __init__(
        self,
        lib: Any,
        model: Any,
        context: Any,
        *,
        capacity: int,
        gpu_layers: int | None = None,
        exact: bool = False,
    ) -> None:
        self._lib = lib
        self._gpu_layers, self._exact = gpu_layers, exact
        self._model = model
        self._context = context
        self.capacity = capacity
        self._text = LlamaCppText(lib, model)
        self._memory = lib.llama_get_memory(context)
        self._batch_size = int(lib.llama_n_batch(context))
        self._one_token = (lib.llama_token * 1)()
        self._one = lib.llama_batch_get_one(self._one_token, 1)
        self._view: Float32Array | None = None
        self._view_address = 0
        self._prefix: bytes | None = None
        self.vocab_size = self._text.vocab_size
        self.position = 0

    @property
    def stop_ids(self) -> frozenset[int]:  # type: ignore[override]
        """Ids that llama.cpp counts as end of generation; found on first use, not while loading."""
        return self._text.stop_ids

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, special tokens in it recognised, none added.

        Raises:
            RuntimeFailure: llama.cpp cannot tokenize it.
        """
        return self._text.encode(text, add_special=False)

    def token_bytes(self, token: int) -> bytes:
        """UTF-8 bytes that one token stands for; empty for control tokens."""
        return self._text.piece(token, special=False)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """Text of a conversation under the template in `tokenizer.chat_template`.

        Raises:
            InputError: the file carries no template, or it rejects the messages.
        """
        return self._text.render(messages, add_generation_prompt=add_generation_prompt)

    def forward(self, ids: Sequence[int]) -> None:
        """Run tokens through the model, extending the KV cache; keeps the last logits.

        Raises:
            InputError: more tokens than the context holds, or an id outside the vocabulary.
            RuntimeFailure: llama.cpp reported an error.
        """
        self._check(ids)
        if len(ids) == 1:
            self._one_token[0] = ids[0]
            self._decode(self._one, 1)
            return
        for start in range(0, len(ids), self._batch_size):
            part = ids[start : start + self._batch_size]
            tokens = (self._lib.llama_token * len(part))(*part)
            self._decode(self._lib.llama_batch_get_one(tokens, len(part)), len(part))

    def _check(self, ids: Sequence[int]) -> None:
        if not ids:
            raise InputError("no tokens to run; give at least one")
        if self.position + len(ids) > self.capacity:
            raise InputError(
                f"{self.position + len(ids)} tokens do not fit a context of {self.capacity}; "
                "raise --context or shorten the input"
            )
        if min(ids) < 0 or max(ids) >= self.vocab_size:
            raise InputError(
                f"token ids must lie in 0..{self.vocab_size - 1}, found {min(ids)}..{max(ids)}; "
                "was the text tokenized for another model?"
            )

    def _decode(self, batch: Any, count: int) -> None:
        status = self._lib.llama_decode(self._context, batch)
        if status != 0:
            kept = self._lib.llama_memory_seq_pos_max(self._memory, _SEQUENCE) + 1
            self.position = int(kept)
            raise RuntimeFailure(
                f"llama.cpp's llama_decode failed with status {status}: {library.complaint()}"
            )
        # Without this, work queued on an accelerator would be timed with the next call.
        self._lib.llama_synchronize(self._context)
        self.position += count

    def greedy(self) -> int:
        """Most probable next token after the last `forward`, without copying logits."""
        return int(self._logits().argmax())

    def last_logits(self) -> Float32Array:
        """A copy of the logits after the last `forward`, shape (vocab_size,)."""
        return self._logits().copy()

    def _logits(self) -> Float32Array:
        """A view of llama.cpp's own buffer, remade only when the buffer has moved."""
        pointer = self._lib.llama_get_logits_ith(self._context, -1)
        if not pointer:
            raise RuntimeFailure("llama.cpp has no logits yet; run forward() first")
        address = ctypes.addressof(pointer.contents)
        if self._view is None or address != self._view_address:
            self._view = np.ctypeslib.as_array(pointer, shape=(self.vocab_size,))
            self._view_address = address
        return self._view

    def all_logits(self, ids: Sequence[int]) -> Float32Array:
        """Logits at every position of a fresh sequence, shape (len(ids), vocab_size).

        Raises:
            InputError: more tokens than the context holds, or an id outside the vocabulary.
            RuntimeFailure: llama.cpp reported an error.
        """
        return self.logits_at(ids, range(len(ids)))

    def logits_at(
        self, ids: Sequence[int], positions: Sequence[int], *, kept: int = 0
    ) -> Float32Array:
        """Logits at some positions, increasing; raises as `all_logits`, which computes more.

        Args:
            ids: the sequence.
            positions: indices into it.
            kept: see `Session.logits_at`.

        Returns:
            Shape (len(positions), vocab_size).
        """
        if not (kept and self._forget_from(self.start + kept)):
            self.reset()
            kept = 0
        self._check(ids[kept:])
        flags = np.zeros(len(ids), np.int8)
        flags[list(positions)] = 1
        result = np.empty((len(positions), self.vocab_size), np.float32)
        step = min(_LOGIT_ROWS, self._batch_size)
        filled = 0
        for start in range(kept, len(ids), step):
            part = ids[start : start + step]
            wanted = np.ascontiguousarray(flags[start : start + step])
            tokens = (self._lib.llama_token * len(part))(*part)
            batch = self._lib.llama_batch_get_one(tokens, len(part))
            batch.logits = wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))
            self._decode(batch, len(part))
            count = int(wanted.sum())
            if count:
                rows = self._lib.llama_get_logits(self._context)
                result[filled : filled + count] = np.ctypeslib.as_array(
                    rows, shape=(count, self.vocab_size)
                )
            filled += count
        return result

    def _forget_from(self, position: int) -> bool:
        """Empty the KV cache from a position on; false if llama.cpp cannot, for this model."""
        if not self.start < position <= self.position:
            return False
        # A cache that is no larger than a sliding window would have let go of what comes before.
        if self._lib.llama_memory_seq_pos_min(self._memory, _SEQUENCE) != 0:
            return False
        if not self._lib.llama_memory_seq_rm(self._memory, _SEQUENCE, position, -1):
            return False
        self.position = position
        return True

    def reset(self) -> None:
        """Empty the KV cache."""
        # Only the bookkeeping: clearing the buffers too would touch all of the KV cache.
        self._lib.llama_memory_clear(self._memory, False)
        self.start = 0
        if self._prefix is not None:
            state.restore(self._lib, self._context, _SEQUENCE, self._prefix)
            self.start = int(self._lib.llama_memory_seq_pos_max(self._memory, _SEQUENCE)) + 1
        self.position = self.start

    def use_adapter(self, path: Path | None) -> None:
        """Switch to a LoRA in a GGUF file, or to a prefix; see `Session.use_adapter`.

        Raises:
            InputError: llama.cpp refuses the file.
            AdapterError: the prefix is of another base.
            UnsupportedError: this model cannot start from a prefix.
        """
        self._prefix = None
        loaded = []
        if path is not None and is_prefix(path):
            self._prefix = self._state_of(read_prefix(path))
        elif path is not None:
            library.clear_errors()
            found = self._lib.llama_adapter_lora_init(self._model, str(path).encode())
            if not found:
                raise InputError(
                    f"llama.cpp cannot use the adapter {path} with this model: "
                    f"{library.complaint()}; make one with edgeadapt export --adapter-mode separate"
                )
            loaded.append(found)
        adapters = (self._lib.llama_adapter_lora_p_ctypes * 1)(*loaded)
        scales = (ctypes.c_float * 1)(1.0)
        # The model frees what was loaded into it.
        self._lib.llama_set_adapters_lora(self._context, adapters, len(loaded), scales)
        self.reset()

    def _state_of(self, prefix: Prefix) -> bytes:
        lib, model = self._lib, self._model
        state.check_model(lib, model)
        prefix.check(*state.cache_shape(lib, model), self.capacity)
        self.reset()
        self.forward([0] * prefix.tokens)
        like = state.sequence_state(lib, self._context, _SEQUENCE)
        return state.with_prefix(lib, model, like, prefix)

    def save_state(self) -> bytes:
        """The sequence's state as llama.cpp writes it; see `Session.save_state`."""
        return state.sequence_state(self._lib, self._context, _SEQUENCE)

    def restore_state(self, saved: bytes) -> None:
        """See `Session.restore_state`."""
        self._lib.llama_memory_clear(self._memory, False)
        self.position = 0
        state.restore(self._lib, self._context, _SEQUENCE, saved)
        self.position = int(self._lib.llama_memory_seq_pos_max(self._memory, _SEQUENCE)) + 1

    def state_settings(self) -> dict[str, str]:
        """Library, cache type, flash attention, and which rope factors a long context takes."""
        build = self.build_info()
        return {
            "llama.cpp": build["llama.cpp"],
            "llama-cpp-python": build["llama-cpp-python"],
            "kv_cache": "f32" if self._exact else "f16",
            "flash_attention": "off" if self._exact else "auto",
            "rope": state.rope_range(self._lib, self._model, self.capacity),
        }

    def build_info(self) -> dict[str, str]:
        """Versions of the package and the library, and the features it was compiled with."""
        return library.build_info()

    def threads_in_use(self) -> int:
        """Threads that llama.cpp says it decodes with."""
        return int(self._lib.llama_n_threads(self._context))

    def facts(self) -> EngineFacts:
        """llama.cpp's description of the model, and its GPUs if layers were to go there."""
        text = ctypes.create_string_buffer(128)
        self._lib.llama_model_desc(self._model, text, len(text))
        return EngineFacts(
            model=text.value.decode("utf-8", "replace"),
            parameters=int(self._lib.llama_model_n_params(self._model)),
            tensor_bytes=int(self._lib.llama_model_size(self._model)),
            gpu_layers=self._gpu_layers,
            gpus=library.gpus() if self._gpu_layers is not None else (),
        )

    def close(self) -> None:
        """Free the context and the model; a second call does nothing."""
        if self._context:
            self._view = None
            self._lib.llama_free(self._context)
            self._lib.llama_model_free(self._model)
            self._context = self._model = None
