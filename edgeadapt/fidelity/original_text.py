"""What the original makes of text: read by `transformers`, or by `tokenizers` alone.

transformers is the judge, and takes seconds to import. tokenizer.json read by `tokenizers`, and the
chat template by Jinja, say the same of nearly every model in a tenth of the time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edgeadapt.chat_template import Message
from edgeadapt.extras import need
from edgeadapt.tokenizer import ModelTokenizer


@dataclass(frozen=True)
class AddedToken:
    """A token beside the vocabulary proper, found in text before anything else is."""

    text: str
    special: bool


class OriginalText(Protocol):
    """A tokenizer and its chat template."""

    has_template: bool
    size: int
    """Number of token ids."""
    bos_id: int | None
    eos_id: int | None
    added: Mapping[int, AddedToken]

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Token ids; `special` adds what the tokenizer puts around a text by itself."""

    def decode_each(self, ids: Sequence[int]) -> list[str]:
        """The text of each token by itself."""

    def tokens(self) -> list[str | None]:
        """The vocabulary's spelling of every id."""

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] | None,
        *,
        answer_follows: bool,
    ) -> str:
        """A conversation as text; a template may raise anything."""


class TransformersText:
    """As transformers reads the folder."""

    def __init__(self, folder: Path) -> None:
        transformers = need("transformers", "checking the shipped tokenizer against the original")
        transformers.utils.logging.set_verbosity_error()
        # tokenizer.json is what training read; AutoTokenizer may build another from its parts.
        exact = (folder / "tokenizer.json").is_file()
        kind = transformers.PreTrainedTokenizerFast if exact else transformers.AutoTokenizer
        self._tokenizer = kind.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        self.has_template = bool(self._tokenizer.chat_template)
        self.size = len(self._tokenizer)
        self.bos_id: int | None = self._tokenizer.bos_token_id
        self.eos_id: int | None = self._tokenizer.eos_token_id
        self.added: Mapping[int, AddedToken] = {
            int(index): AddedToken(str(token), token.special)
            for index, token in sorted(self._tokenizer.added_tokens_decoder.items())
        }

    def encode(self, text: str, *, special: bool) -> list[int]:
        """See `OriginalText`."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=special)["input_ids"]
        return ids

    def decode_each(self, ids: Sequence[int]) -> list[str]:
        """See `OriginalText`."""
        return [self._tokenizer.decode([index]) for index in ids]

    def tokens(self) -> list[str | None]:
        """See `OriginalText`."""
        found: list[str | None] = self._tokenizer.convert_ids_to_tokens(range(self.size))
        return found

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] | None,
        *,
        answer_follows: bool,
    ) -> str:
        """See `OriginalText`."""
        text: str = self._tokenizer.apply_chat_template(
            messages, tools=tools, tokenize=False, add_generation_prompt=answer_follows
        )
        return text


class TokenizersText:
    """As `tokenizers` and Jinja read the folder, without transformers.

    Raises:
        InputError: the folder has no tokenizer.json.
        CorruptFileError: it cannot be parsed.
    """

    def __init__(self, folder: Path) -> None:
        self._tokenizer = ModelTokenizer.from_folder(folder)
        self._backend = self._tokenizer.backend
        self.has_template = bool(self._tokenizer.chat_template)
        self.size = self._tokenizer.vocab_size
        self.bos_id = self._special("bos_token")
        self.eos_id = self._special("eos_token")
        self.added: Mapping[int, AddedToken] = {
            index: AddedToken(token.content, token.special)
            for index, token in sorted(self._backend.get_added_tokens_decoder().items())
        }

    def _special(self, name: str) -> int | None:
        text = self._tokenizer.special_tokens.get(name)
        found: int | None = None if text is None else self._backend.token_to_id(text)
        return found

    def encode(self, text: str, *, special: bool) -> list[int]:
        """See `OriginalText`."""
        return self._tokenizer.encode(text, add_special_tokens=special)

    def decode_each(self, ids: Sequence[int]) -> list[str]:
        """See `OriginalText`."""
        each = [[index] for index in ids]
        texts: list[str] = self._backend.decode_batch(each, skip_special_tokens=False)
        return texts

    def tokens(self) -> list[str | None]:
        """See `OriginalText`."""
        return [self._backend.id_to_token(index) for index in range(self.size)]

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] | None,
        *,
        answer_follows: bool,
    ) -> str:
        """See `OriginalText`."""
        return self._tokenizer.render(messages, add_generation_prompt=answer_follows, tools=tools)
