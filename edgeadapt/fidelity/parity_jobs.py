"""What parity asks in child processes: of the original tokenizer, and of each engine.

A case is a JSON object with a `name` and either `messages` and `tools`, or `text`. Its answer has
`text` and `ids`, or `error`. Conversations are rendered to where an answer begins and tokenized
with nothing added; plain text is tokenized with what the tokenizer puts around it by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edgeadapt.artifact import Artifact
from edgeadapt.errors import EdgeAdaptError
from edgeadapt.fidelity.chats import ODDITIES, TURN, conversations
from edgeadapt.fidelity.original_text import OriginalText, TokenizersText, TransformersText
from edgeadapt.files import read_json
from edgeadapt.runtimes.base import EngineText
from edgeadapt.runtimes.registry import get_runtime
from edgeadapt.worker import Progress

READERS: dict[str, Callable[[Path], OriginalText]] = {
    "transformers": TransformersText,
    "tokenizers": TokenizersText,
}
"""What reads the original's folder, by the library that does it."""

_TOKENS_IN_A_TEXT = 64
"""Tokens of the vocabulary in one text."""
_MOST_ADDED = 512
"""Added tokens that get a text of their own."""


def run_original(payload: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """The `parity-original` job: what the original makes of every case, and its special tokens."""
    folder = Path(payload["folder"])
    original = READERS[payload["reader"]](folder)
    cases = list(_cases(original))
    return {
        "cases": cases,
        "answers": [_original(original, case) for case in cases],
        "bos_id": original.bos_id,
        "eos_id": original.eos_id,
        "stop_ids": _stop_ids(folder, original),
        "end_of_turn": _end_of_turn(original),
        "special_ids": [index for index, token in original.added.items() if token.special],
        "tokens": original.tokens(),
    }


def _cases(original: OriginalText) -> Iterator[dict[str, Any]]:
    """Conversations, odd texts, every added token, and texts of the whole vocabulary."""
    if original.has_template:
        yield from conversations()
    for name, text in ODDITIES.items():
        yield {"name": name, "text": text}
    added = [token.text for token in original.added.values()]
    step = max(1, len(added) // _MOST_ADDED)
    for token in added[::step]:
        yield {"name": f"added token {token}", "text": f"a{token} b {token}{token}c"}
    if original.has_template and added:
        text = " ".join(added[::step][:32])
        messages = [{"role": "user", "content": f"Say {text} twice."}]
        yield {"name": "chat of added tokens", "messages": messages, "tools": None}
    words = original.decode_each(range(original.size))
    words = [word for word in words if word and "\ufffd" not in word and "\0" not in word]
    for start in range(0, len(words), _TOKENS_IN_A_TEXT):
        text = "\n".join(words[start : start + _TOKENS_IN_A_TEXT])
        yield {"name": f"vocabulary from word {start}", "text": text}


def _original(original: OriginalText, case: dict[str, Any]) -> dict[str, Any]:
    if "messages" not in case:
        return {"text": case["text"], "ids": original.encode(case["text"], special=True)}
    try:
        text = original.render(case["messages"], case["tools"], answer_follows=True)
    except Exception as error:  # a template may raise anything: it rejects the conversation
        return {"error": f"{type(error).__name__}: {error}"}
    return {"text": text, "ids": original.encode(text, special=False)}


def _stop_ids(folder: Path, original: OriginalText) -> list[int]:
    """What ends a generation in transformers: generation_config.json, and the tokenizer's EOS."""
    path = folder / "generation_config.json"
    value = read_json(path).get("eos_token_id") if path.is_file() else None
    found = set(value if isinstance(value, list) else [] if value is None else [value])
    if original.eos_id is not None:
        found.add(original.eos_id)
    return sorted(found)


def _end_of_turn(original: OriginalText) -> int | None:
    """The added token that the template puts right after an answer, if it is one."""
    if not original.has_template:
        return None
    turns = [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": TURN}]
    try:
        text = original.render(turns, None, answer_follows=False)
    except Exception:  # a template may raise anything: then there is no telling
        return None
    _, found, rest = text.rpartition(TURN)
    ids = original.encode(rest.lstrip(), special=False) if found else []
    return ids[0] if ids and ids[0] in original.added else None


def run_engine(payload: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """The `parity-engine` job: what an engine makes of every case, from the artifact's files."""
    artifact = Artifact(Path(payload["artifact"]), payload["format"], payload["quantization"])
    engine = get_runtime(payload["runtime"]).open_text(artifact)
    if engine is None:
        return {"answers": None}
    try:
        return {
            "answers": [_answer(engine, case) for case in payload["cases"]],
            "bos_id": engine.bos_id,
            "eos_id": engine.eos_id,
            "stop_ids": sorted(engine.stop_ids),
            "tokens": engine.tokens(),
        }
    finally:
        engine.close()


def _answer(engine: EngineText, case: dict[str, Any]) -> dict[str, Any]:
    try:
        if "messages" not in case:
            return {"text": case["text"], "ids": engine.encode(case["text"], add_special=True)}
        text = engine.render(case["messages"], tools=case["tools"])
        return {"text": text, "ids": engine.encode(text, add_special=False)}
    except EdgeAdaptError as error:
        return {"error": str(error)}
