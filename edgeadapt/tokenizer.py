"""A Hugging Face tokenizer folder, read with `tokenizers` alone (transformers costs seconds)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeadapt.chat_template import Message, render_chat
from edgeadapt.errors import CorruptFileError, InputError
from edgeadapt.extras import need
from edgeadapt.files import read_json

if TYPE_CHECKING:
    import tokenizers

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)
"""Everything beside the weights that text needs; copied verbatim wherever a model goes."""


@dataclass(frozen=True)
class ModelTokenizer:
    """Text to token ids and back, the chat template and the ids that end a generation."""

    backend: tokenizers.Tokenizer
    chat_template: str | None
    special_tokens: dict[str, str]
    stop_ids: frozenset[int]

    @classmethod
    def from_folder(cls, folder: Path) -> ModelTokenizer:
        """Read `tokenizer.json` and the files beside it.

        Raises:
            InputError: there is no tokenizer.json.
            CorruptFileError: it cannot be parsed.
        """
        tokenizers = need("tokenizers", "reading tokenizer.json")
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise InputError(
                f"{folder} has no tokenizer.json; save the model's fast tokenizer there first"
            )
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception for every parse failure
            raise CorruptFileError(f"{path} is not a tokenizer: {error}") from error
        backend.no_truncation()
        backend.no_padding()
        config = _optional_json(folder / "tokenizer_config.json")
        special = {
            key: text
            for key in ("bos_token", "eos_token", "unk_token", "pad_token")
            if (text := _token_text(config.get(key)))
        }
        return cls(
            backend=backend,
            chat_template=read_chat_template(folder, config),
            special_tokens=special,
            stop_ids=_stop_ids(folder, backend, special),
        )

    @property
    def vocab_size(self) -> int:
        """Number of token ids, added tokens included."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Token ids of `text`; special tokens written out in it are recognised as such."""
        ids: list[int] = self.backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Text of token ids."""
        return str(self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool,
        tools: Sequence[dict[str, Any]] | None = None,
    ) -> str:
        """Text of a conversation under the model's chat template.

        Raises:
            InputError: the model has no chat template, or it rejects the messages.
        """
        if self.chat_template is None:
            raise InputError(
                "this model has no chat template; give plain text, or prompt/completion pairs"
            )
        return render_chat(
            self.chat_template,
            messages,
            add_generation_prompt=add_generation_prompt,
            special_tokens=self.special_tokens,
            tools=tools,
        )


def _optional_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    value = read_json(path)
    if not isinstance(value, dict):
        raise CorruptFileError(f"{path} holds {type(value).__name__}, expected an object")
    return value


def _token_text(value: Any) -> str | None:
    """A token in tokenizer_config.json is a string, or an object with `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def read_chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    """Jinja source of a folder's chat template: a file of its own, or in tokenizer_config.json."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise CorruptFileError(f"{path} is not UTF-8 text") from error
    template = config.get("chat_template")
    if isinstance(template, list):  # several named templates: the default one is for chat
        entries = [entry for entry in template if isinstance(entry, dict)]
        named = {entry.get("name"): entry.get("template") for entry in entries}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _stop_ids(
    folder: Path, backend: tokenizers.Tokenizer, special: dict[str, str]
) -> frozenset[int]:
    """Ids from generation_config.json, and the tokenizer's own end token."""
    ids: set[int] = set()
    value = _optional_json(folder / "generation_config.json").get("eos_token_id")
    if isinstance(value, int):
        ids.add(value)
    elif isinstance(value, list):
        ids.update(entry for entry in value if isinstance(entry, int))
    if "eos_token" in special:
        token = backend.token_to_id(special["eos_token"])
        if token is not None:
            ids.add(token)
    return frozenset(ids)
