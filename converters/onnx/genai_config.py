"""Correct what the builder writes into genai_config.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from edgeadapt.errors import InputError
from edgeadapt.files import read_json, write_json
from edgeadapt.tokenizer import ModelTokenizer

_MARK = "edgeadapt"


def repair_genai_config(
    folder: Path,
    tokenizer: ModelTokenizer,
    config: dict[str, Any],
    session: Mapping[str, int | str] = MappingProxyType({}),
) -> None:
    """Set the ids that end a generation, begin a text and pad it, and session options.

    The builder of 0.18 derives them from the tokenizer class that transformers guesses, which for
    some tokenizers makes the opening of a turn end the answer.
    """
    path = folder / "genai_config.json"
    record = read_json(path)
    stops = sorted(stop_ids(tokenizer, config))
    if stops:
        record["model"]["eos_token_id"] = stops
    for key in ("bos", "pad"):
        text = tokenizer.special_tokens.get(f"{key}_token")
        token = tokenizer.backend.token_to_id(text) if text else None
        if token is not None:
            record["model"][f"{key}_token_id"] = token
    record["model"]["decoder"].setdefault("session_options", {}).update(session)
    write_json(path, record)


def stop_ids(tokenizer: ModelTokenizer, config: dict[str, Any]) -> frozenset[int]:
    """Ids that end a generation: the model's own, and what its chat template ends a turn with.

    config.json is asked only where the generation config and the tokenizer name none.
    """
    ids = set(tokenizer.stop_ids)
    if not ids:
        value = config.get("eos_token_id")
        ids.update(value if isinstance(value, list) else [value] if value is not None else [])
    turn_end = end_of_turn(tokenizer)
    return frozenset(ids if turn_end is None else ids | {turn_end})


def end_of_turn(tokenizer: ModelTokenizer) -> int | None:
    """Special token that the chat template puts right after an assistant's words, if it does."""
    if tokenizer.chat_template is None:
        return None
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": _MARK}]
    try:
        text = tokenizer.render(messages, add_generation_prompt=False)
    except InputError:  # a template with other roles or fields: it has nothing to say here
        return None
    after = tokenizer.encode(text.rpartition(_MARK)[2])
    added = tokenizer.backend.get_added_tokens_decoder()
    return after[0] if after and after[0] in added and added[after[0]].special else None
