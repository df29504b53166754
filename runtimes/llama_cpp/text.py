"""Text in llama.cpp: the vocabulary, special tokens and chat template of a loaded model."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

from edgeadapt.chat_template import Message, render_chat
from edgeadapt.errors import InputError, RuntimeFailure
from edgeadapt.runtimes.base import EngineText


class LlamaCppText(EngineText):
    """See `EngineText`. Does not own the C model unless told so."""

    def __init__(self, lib: Any, model: Any, *, owned: bool = False) -> None:
        self._lib = lib
        self._model = model
        self._owned = owned
        self._vocab = lib.llama_model_get_vocab(model)
        self.vocab_size = int(lib.llama_vocab_n_tokens(self._vocab))
        self.bos_id = self._known(lib.llama_vocab_bos(self._vocab))
        self.eos_id = self._known(lib.llama_vocab_eos(self._vocab))

    @staticmethod
    def _known(token: int) -> int | None:
        return int(token) if token >= 0 else None

    @functools.cached_property
    def stop_ids(self) -> frozenset[int]:  # type: ignore[override]
        """Ids that llama.cpp counts as end of generation; found on first use, not while loading."""
        is_end = self._lib.llama_vocab_is_eog
        return frozenset(t for t in range(self.vocab_size) if is_end(self._vocab, t))

    def encode(self, text: str, *, add_special: bool) -> list[int]:
        """Token ids of `text`; see `EngineText.encode`.

        Raises:
            RuntimeFailure: llama.cpp cannot tokenize it.
        """
        data = text.encode()
        room = len(data) + 8  # a token covers at least one byte; some vocabularies add a prefix
        buffer = (self._lib.llama_token * room)()
        count = self._lib.llama_tokenize(
            self._vocab, data, len(data), buffer, room, add_special, True
        )
        if count < 0:
            raise RuntimeFailure(f"llama.cpp cannot tokenize a text of {len(data)} bytes")
        return list(buffer[:count])

    def piece(self, token: int, *, special: bool) -> bytes:
        """UTF-8 bytes that one token stands for; `special`: also those of control tokens."""
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            count = self._lib.llama_token_to_piece(self._vocab, token, buffer, room, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            room = -count

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """Text of a conversation under the template in `tokenizer.chat_template`.

        Raises:
            InputError: the file carries no template, or it rejects the messages.
        """
        template = self._lib.llama_model_chat_template(self._model, None)
        if template is None:
            raise InputError(
                "this GGUF file has no chat template (tokenizer.chat_template); "
                "export it from a folder that has one"
            )
        named = {"bos_token": self.bos_id, "eos_token": self.eos_id}
        special = {
            name: self.piece(token, special=True).decode("utf-8", "replace")
            for name, token in named.items()
            if token is not None
        }
        return render_chat(
            template.decode(),
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            special_tokens=special,
        )

    def tokens(self) -> list[str | None]:
        """The file's token list; see `EngineText.tokens`."""
        text = self._lib.llama_vocab_get_text
        return [
            text(self._vocab, token).decode("utf-8", "replace") for token in range(self.vocab_size)
        ]

    def close(self) -> None:
        """Free the model, if it is ours."""
        if self._owned and self._model:
            self._lib.llama_model_free(self._model)
            self._model = None
