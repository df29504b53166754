"""Text for engines that bring no tokenizer: `tokenizer.json` read with `tokenizers`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from edgeadapt.chat_template import Message
from edgeadapt.errors import InputError
from edgeadapt.runtimes.base import EngineText
from edgeadapt.tokenizer import ModelTokenizer

if TYPE_CHECKING:
    import tokenizers

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class HfText:
    """The text half of a `Session`, over a `ModelTokenizer`."""

    def __init__(self, tokenizer: ModelTokenizer) -> None:
        self.tokenizer = tokenizer
        self._pieces = TokenPieces(tokenizer.backend)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, special tokens in it recognised, none added."""
        return self.tokenizer.encode(text)

    def token_bytes(self, token: int) -> bytes:
        """UTF-8 bytes that one token stands for; empty for control tokens."""
        return self._pieces.of(token)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """Text of a conversation under the chat template shipped with the artifact."""
        return self.tokenizer.render(messages, add_generation_prompt=add_generation_prompt)


class HfEngineText(EngineText):
    """An `EngineText` over a `ModelTokenizer`, for engines that leave text to the app."""

    def __init__(self, tokenizer: ModelTokenizer, stop_ids: frozenset[int]) -> None:
        self.tokenizer = tokenizer
        self.stop_ids = stop_ids
        self.bos_id = self._id("bos_token")
        self.eos_id = self._id("eos_token")

    def _id(self, name: str) -> int | None:
        text = self.tokenizer.special_tokens.get(name)
        found: int | None = self.tokenizer.backend.token_to_id(text) if text else None
        return found

    def encode(self, text: str, *, add_special: bool) -> list[int]:
        """Token ids of `text`; see `EngineText.encode`."""
        return self.tokenizer.encode(text, add_special_tokens=add_special)

    def render(
        self, messages: Sequence[Message], *, tools: Sequence[dict[str, Any]] | None = None
    ) -> str:
        """See `EngineText.render`."""
        return self.tokenizer.render(messages, tools=tools, add_generation_prompt=True)

    def tokens(self) -> list[str | None]:
        """See `EngineText.tokens`."""
        backend = self.tokenizer.backend
        by_id = {index: token for token, index in backend.get_vocab(True).items()}
        return [by_id.get(index) for index in range(max(by_id, default=-1) + 1)]


def check_room(position: int, count: int, context: int) -> None:
    """Refuse no tokens, and more tokens than the KV cache has room for.

    Raises:
        InputError: naming both numbers.
    """
    if count == 0:
        raise InputError("there are no tokens to run; give at least one")
    if position + count > context:
        raise InputError(
            f"{position + count} tokens do not fit a context of {context}; "
            "shorten the text or ask for a larger context"
        )


class TokenPieces:
    """Bytes of single tokens, which `decode` cannot give: it needs whole UTF-8 characters.

    Byte-level BPE spells each byte as one printable character (GPT-2's table); SentencePiece
    spells a space as U+2581 and unknown characters as byte tokens `<0xAB>`. Which of the two a
    tokenizer does is told by its decoder.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        self._added = backend.get_added_tokens_decoder()
        parts = list(_parts(json.loads(backend.decoder.__getstate__()))) if backend.decoder else []
        kinds = {part.get("type") for part in parts}
        self._byte_level = "ByteLevel" in kinds
        self._byte_fallback = "ByteFallback" in kinds
        self._spaces = tuple(
            part["replacement"] if part["type"] == "Metaspace" else part["pattern"]["String"]
            for part in parts
            if part.get("type") == "Metaspace"
            or (part.get("type") == "Replace" and part.get("content") == " ")
        )

    def of(self, token: int) -> bytes:
        """Bytes of one token; empty for special tokens and for ids that are only padding."""
        if token in self._added:
            added = self._added[token]
            return b"" if added.special else added.content.encode()
        piece: str | None = self._backend.id_to_token(token)
        if piece is None:
            return b""
        if self._byte_level:
            table = _byte_level_table()
            return bytes(table[character] for character in piece if character in table)
        if self._byte_fallback and (match := _BYTE_TOKEN.fullmatch(piece)):
            return bytes([int(match[1], 16)])
        for space in self._spaces:
            piece = piece.replace(space, " ")
        return piece.encode()


def _parts(decoder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A decoder, or the members of a sequence of them."""
    if decoder.get("type") == "Sequence":
        for part in decoder["decoders"]:
            yield from _parts(part)
    else:
        yield decoder


@cache
def _byte_level_table() -> dict[str, int]:
    """Character to byte: printable Latin-1 stands for itself, the rest follows from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + index): byte for index, byte in enumerate(rest)
    }
