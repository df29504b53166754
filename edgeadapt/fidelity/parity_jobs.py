"""What parity asks in child processes: of the Hugging Face tokenizer, and of each engine.

A case is a JSON object with a `name` and either `messages` and `tools`, or `text`. Its answer has
`text` and `ids`, or `error`. Conversations are rendered to where an answer begins and tokenized
with nothing added; plain text is tokenized with what the tokenizer puts around it by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeadapt.artifact import Artifact
from edgeadapt.errors import EdgeAdaptError
from edgeadapt.extras import need
from edgeadapt.fidelity.chats import ODDITIES, TURN, conversations
from edgeadapt.files import read_json
from edgeadapt.runtimes.base import EngineText
from edgeadapt.runtimes.registry import get_runtime
from edgeadapt.worker import Progress

_TOKENS_IN_A_TEXT = 64
"""Tokens of the vocabulary in one text."""
_MOST_ADDED = 512
"""Added tokens that get a text of their own."""


def run_original(payload: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """The `parity-original` job: what transformers makes of every case, and its special tokens."""
    transformers = need("transformers", "checking the shipped tokenizer against the original")
    transformers.utils.logging.set_verbosity_error()
    folder = Path(payload["folder"])
    # tokenizer.json is what training read; AutoTokenizer may build another from its parts.
    exact = (folder / "tokenizer.json").is_file()
    kind = transformers.PreTrainedTokenizerFast if exact else transformers.AutoTokenizer
    tokenizer = kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    cases = list(_cases(tokenizer))
    answers = [_original(tokenizer, case) for case in cases]
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    added = {int(i): token.special for i, token in tokenizer.added_tokens_decoder.items()}
    return {
        "cases": cases,
        "answers": answers,
        "bos_id": tokenizer.bos_token_id,
        "eos_id": tokenizer.eos_token_id,
        "stop_ids": _stop_ids(folder, tokenizer),
        "end_of_turn": _end_of_turn(tokenizer, added),
        "special_ids": sorted(i for i, special in added.items() if special),
        "tokens": tokens,
    }


def _cases(tokenizer: Any) -> Iterator[dict[str, Any]]:
    """Conversations, odd texts, every added token, and texts of the whole vocabulary."""
    if tokenizer.chat_template:
        yield from conversations()
    for name, text in ODDITIES.items():
        yield {"name": name, "text": text}
    added = [str(token) for _, token in sorted(tokenizer.added_tokens_decoder.items())]
    step = max(1, len(added) // _MOST_ADDED)
    for token in added[::step]:
        yield {"name": f"added token {token}", "text": f"a{token} b {token}{token}c"}
    if tokenizer.chat_template and added:
        text = " ".join(added[::step][:32])
        messages = [{"role": "user", "content": f"Say {text} twice."}]
        yield {"name": "chat of added tokens", "messages": messages, "tools": None}
    words = [tokenizer.decode([index]) for index in range(len(tokenizer))]
    words = [word for word in words if word and "\ufffd" not in word and "\0" not in word]
    for start in range(0, len(words), _TOKENS_IN_A_TEXT):
        text = "\n".join(words[start : start + _TOKENS_IN_A_TEXT])
        yield {"name": f"vocabulary from word {start}", "text": text}


def _original(tokenizer: Any, case: dict[str, Any]) -> dict[str, Any]:
    if "messages" not in case:
        return {"text": case["text"], "ids": _ids(tokenizer, case["text"], special=True)}
    try:
        text = tokenizer.apply_chat_template(
            case["messages"], tools=case["tools"], tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # a template may raise anything: it rejects the conversation
        return {"error": f"{type(error).__name__}: {error}"}
    return {"text": text, "ids": _ids(tokenizer, text, special=False)}


def _ids(tokenizer: Any, text: str, *, special: bool) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=special)["input_ids"]
    return ids


def _stop_ids(folder: Path, tokenizer: Any) -> list[int]:
    """What ends a generation in transformers: generation_config.json, and the tokenizer's EOS."""
    path = folder / "generation_config.json"
    value = read_json(path).get("eos_token_id") if path.is_file() else None
    found = set(value if isinstance(value, list) else [] if value is None else [value])
    if tokenizer.eos_token_id is not None:
        found.add(tokenizer.eos_token_id)
    return sorted(found)


def _end_of_turn(tokenizer: Any, added: dict[int, bool]) -> int | None:
    """The added token that the template puts right after an answer, if it is one."""
    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": TURN}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception:  # a template may raise anything: then there is no telling
        return None
    _, found, rest = text.rpartition(TURN)
    ids = _ids(tokenizer, rest.lstrip(), special=False) if found else []
    return ids[0] if ids and ids[0] in added else None


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
