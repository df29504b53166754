"""Held-out text as token sequences: examples whose answers count, or windows of running text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgeadapt.calibration.text import read_text
from edgeadapt.data.encode import Encoded, encode_dataset
from edgeadapt.errors import InputError
from edgeadapt.tokenizer import ModelTokenizer


def held_out_text(
    path: Path,
    tokenizer: ModelTokenizer,
    *,
    limit: int | None = None,
    max_tokens: int = 512,
    window: int = 512,
    system: str | None = None,
) -> list[Encoded]:
    """A dataset's examples, or a .txt file in windows.

    Args:
        path: see `load_examples`; or UTF-8 text in a file that ends in .txt.
        tokenizer: the model's.
        limit: most examples or windows, evenly spaced; all by default.
        max_tokens: length at which examples are cut.
        window: tokens in a window.
        system: put before the conversations of a dataset that have no system prompt.

    Raises:
        InputError: the data cannot be read, or nothing in it counts.
    """
    if not is_text(path):
        return encode_dataset(path, tokenizer, max_tokens, limit=limit, system=system)
    found = windows(tokenizer.encode(read_text(path), add_special_tokens=True), tokenizer, window)
    if not found:
        raise InputError(
            f"{path} is shorter than one window of {window} tokens; give more text, or a smaller "
            "--window"
        )
    if limit is not None and limit < len(found):
        found = [found[index * len(found) // limit] for index in range(limit)]
    return found


def is_text(path: Path) -> bool:
    """Whether a path names running text, and no dataset."""
    return path.suffix.lower() == ".txt"


def within(encoded: Sequence[Encoded], vocabulary: int) -> Sequence[Encoded]:
    """Text as a model reads it that lacks the tokens an adapter added.

    Args:
        encoded: the text.
        vocabulary: how many token ids the model has.

    Returns:
        The same text, token by token; the ids that the model lacks are its first one. If there
        are none of these, `encoded` itself.
    """
    if all(index < vocabulary for example in encoded for index in example.ids):
        return encoded
    return [
        Encoded([index if index < vocabulary else 0 for index in example.ids], example.scored)
        for example in encoded
    ]


def windows(ids: list[int], tokenizer: ModelTokenizer, window: int) -> list[Encoded]:
    """Consecutive windows as llama.cpp's `llama-perplexity` takes them.

    In each, the tokens after the first `window // 2 + 1` are scored, so that every one has at
    least half a window before it. What is left at the end is dropped. Where the tokenizer begins
    a text with a token of its own, that takes the place of each window's first.
    """
    prefix = tokenizer.encode("", add_special_tokens=True)[:1]
    first = window // 2
    scored = [position > first for position in range(window)]
    return [
        Encoded(prefix + ids[start + len(prefix) : start + window], scored)
        for start in range(0, len(ids) - window + 1, window)
    ]
