"""llama.cpp's own tokenizer and logits, by its C functions alone: what imports are held to."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import llama_cpp
import numpy as np

_quiet = llama_cpp.llama_log_callback(lambda *_: None)


class LlamaCpp:
    """A GGUF file in llama.cpp; `vocab_only` leaves the weights unread."""

    def __init__(self, path: Path, *, vocab_only: bool = True) -> None:
        llama_cpp.llama_log_set(_quiet, ctypes.c_void_p(0))
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = vocab_only
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        assert self._model, f"llama.cpp cannot load {path}"
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)

    def encode(self, text: str, *, add_special: bool = False) -> list[int]:
        raw = text.encode()
        room = len(raw) + 8
        ids = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self._vocab, raw, len(raw), ids, room, add_special, True)
        assert count >= 0
        return list(ids[:count])

    def logits(self, ids: Sequence[int], room: int = 0) -> np.ndarray:
        """Logits at every position, float32 KV cache (of `room` tokens), no flash attention."""
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = max(32, room, len(ids))
        params.type_k = params.type_v = 0  # F32
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.n_threads = params.n_threads_batch = 2
        context = llama_cpp.llama_init_from_model(self._model, params)
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        for position, token in enumerate(ids):
            batch.token[position] = token
            batch.pos[position] = position
            batch.n_seq_id[position] = 1
            batch.seq_id[position][0] = 0
            batch.logits[position] = 1
        batch.n_tokens = len(ids)
        assert llama_cpp.llama_decode(context, batch) == 0
        width = llama_cpp.llama_vocab_n_tokens(self._vocab)
        rows = llama_cpp.llama_get_logits(context)
        values = np.ctypeslib.as_array(rows, shape=(len(ids), width)).copy()
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(context)
        return values

    def close(self) -> None:
        llama_cpp.llama_model_free(self._model)
