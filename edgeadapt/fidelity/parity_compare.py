"""Differences between what the original tokenizer and an engine make of the same cases, in words.

The answers are those of the jobs in `parity_jobs`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

_SHOWN = 20
"""Characters of text shown before the place where it begins to differ."""


@dataclass(frozen=True)
class Mismatch:
    """One difference, in words."""

    kind: str
    """`text`, `tokens`, `vocabulary`, `bos`, `eos`, `stop` or `double-bos`."""
    case: str
    message: str

    def record(self) -> dict[str, str]:
        """As JSON."""
        return {"kind": self.kind, "case": self.case, "message": self.message}


def compare(original: dict[str, Any], found: dict[str, Any]) -> Iterator[Mismatch]:
    """Every difference between the answers of `run_original` and `run_engine`."""
    spelled = original["tokens"], found.get("tokens") or original["tokens"]
    failed = {answer.get("error") for answer in found["answers"]}
    if len(failed) == 1 and None not in failed and "tokens" not in found:
        yield Mismatch("tokens", "all", str(failed.pop()))
        return
    for case, expected, got in zip(
        original["cases"], original["answers"], found["answers"], strict=True
    ):
        yield from _compare_case(case["name"], expected, got, spelled)
        if "messages" in case and _doubled(got.get("ids"), found["bos_id"]):
            yield Mismatch(
                "double-bos", case["name"],
                f"{case['name']!r} begins with two BOS tokens ({found['bos_id']})",
            )  # fmt: skip
    yield from _compare_vocabulary(*spelled)
    yield from _compare_special(original, found)


def _compare_case(
    name: str,
    expected: dict[str, Any],
    got: dict[str, Any],
    spelled: tuple[list[str | None], list[str | None]],
) -> Iterator[Mismatch]:
    if "error" in expected or "error" in got:
        if ("error" in expected) != ("error" in got):
            who, why = ("original", expected) if "error" in expected else ("artifact", got)
            yield Mismatch("text", name, f"only the {who} rejects {name!r}: {why['error']}")
        return
    if expected["text"] != got["text"]:
        place = _first_difference(expected["text"], got["text"])
        yield Mismatch(
            "text", name,
            f"the chat template renders {name!r} otherwise from character {place}: expected "
            f"{_around(expected['text'], place)}, found {_around(got['text'], place)}",
        )  # fmt: skip
        return
    if expected["ids"] != got["ids"]:
        place = _first_difference(expected["ids"], got["ids"])
        yield Mismatch(
            "tokens", name,
            f"{name!r} differs at token {place}: expected "
            f"{_token(expected['ids'], place, spelled[0])}, found "
            f"{_token(got['ids'], place, spelled[1])}",
        )  # fmt: skip


def _first_difference(left: Sequence[Any], right: Sequence[Any]) -> int:
    return next(i for i, (a, b) in enumerate(zip_longest(left, right)) if a != b)


def _around(text: str, place: int) -> str:
    return repr(text[max(0, place - _SHOWN) : place + 2 * _SHOWN])


def _token(ids: list[int], place: int, spelled: list[str | None]) -> str:
    if place >= len(ids):
        return "the end"
    token = ids[place]
    return f"{token} ({spelled[token] if token < len(spelled) else None!r})"


def _doubled(ids: list[int] | None, bos: int | None) -> bool:
    return bool(ids) and bos is not None and (ids or [])[:2] == [bos, bos]


def _compare_vocabulary(expected: list[str | None], found: list[str | None]) -> Iterator[Mismatch]:
    """The token of every id that the original has one for."""
    differing = [
        (index, want, got)
        for index, (want, got) in enumerate(zip_longest(expected, found[: len(expected)]))
        if want is not None and _plain(want) != _plain(got)
    ]
    if differing:
        index, want, got = differing[0]
        yield Mismatch(
            "vocabulary", "vocabulary",
            f"{len(differing)} token ids stand for other tokens, the first is {index}: expected "
            f"{want!r}, found {got!r}",
        )  # fmt: skip


def _plain(token: str | None) -> str | None:
    """SentencePiece's sign for a space is written out in GGUF's added tokens."""
    return None if token is None else token.replace("\u2581", " ")


def _compare_special(original: dict[str, Any], found: dict[str, Any]) -> Iterator[Mismatch]:
    tokens = original["tokens"]

    def told(token: int | None) -> str:
        known = token is not None and token < len(tokens)
        return f"{token} ({tokens[token]!r})" if known else str(token)

    for name in ("bos", "eos"):
        want, got = original[f"{name}_id"], found[f"{name}_id"]
        if want is not None and want != got:
            yield Mismatch(
                name, "special tokens",
                f"the {name.upper()} token is {told(got)}, expected {told(want)}",
            )  # fmt: skip
    stops = set(found["stop_ids"])
    wanted = set(original["stop_ids"])
    if original["end_of_turn"] is not None:
        wanted.add(original["end_of_turn"])
    if missing := sorted(wanted - stops):
        yield Mismatch(
            "stop", "special tokens",
            f"generation does not end at {', '.join(told(token) for token in missing)}",
        )  # fmt: skip
    if wrong := sorted(stops - wanted - set(original["special_ids"])):
        yield Mismatch(
            "stop", "special tokens",
            f"generation ends at {told(wrong[0])}, which the original goes on after",
        )  # fmt: skip
