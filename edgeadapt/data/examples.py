"""One training or evaluation example, whatever file and form it came in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from edgeadapt.chat_template import Message
from edgeadapt.errors import InputError

_ROLE_OF = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
"""ShareGPT's speaker names (`conversations` with `from` and `value`) as chat roles."""

_EXPECTED = "expected 'messages' (a list of role and content), 'prompt' and 'completion', or 'text'"


@dataclass(frozen=True)
class Example:
    """Exactly one form is set: `messages`, or `prompt` with `completion`, or `text`."""

    messages: tuple[Message, ...] | None = None
    prompt: str | None = None
    completion: str | None = None
    text: str | None = None


def parse_example(record: object, where: str) -> Example:
    """Normalise one row of a dataset.

    The first form whose fields are present is taken: `messages`, `conversations`,
    `prompt` + `completion`, `text`. Where a prompt and its completion are lists of messages
    (TRL's conversational form) they become one conversation.

    Args:
        record: the row, field name -> value.
        where: file and line, for messages.

    Raises:
        InputError: a field is missing or has the wrong kind of value; names `where` and the field.
    """
    if not isinstance(record, Mapping):
        raise InputError(f"{where}: found {_kind(record)}, expected an object; {_EXPECTED}")
    present = {key for key, value in record.items() if value is not None}
    if "messages" in present:
        return Example(messages=_messages(record["messages"], "messages", where))
    if "conversations" in present:
        return Example(messages=_messages(record["conversations"], "conversations", where))
    if "prompt" in present or "completion" in present:
        for field in ("prompt", "completion"):
            if field not in present:
                raise InputError(f"{where}: field {field!r} is missing")
        return _completion(record["prompt"], record["completion"], where)
    if "text" in present:
        return Example(text=_text(record["text"], "text", where))
    found = ", ".join(repr(str(key)[:40]) for key in list(record)[:8]) or "no field"
    raise InputError(f"{where}: found {found}; {_EXPECTED}")


def _completion(prompt: object, completion: object, where: str) -> Example:
    if isinstance(prompt, (list, tuple)) and isinstance(completion, (list, tuple)):
        return Example(messages=_messages([*prompt, *completion], "completion", where))
    return Example(
        prompt=_text(prompt, "prompt", where), completion=_text(completion, "completion", where)
    )


def _messages(value: object, field: str, where: str) -> tuple[Message, ...]:
    if isinstance(value, str):  # CSV has no lists: JSON in the cell
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: field {field!r} is not a JSON list: {error}") from error
    if not isinstance(value, (list, tuple)) or not value:
        raise InputError(f"{where}: field {field!r} is {_kind(value)}, expected a list of messages")
    messages = tuple(
        _message(entry, f"{field}[{index}]", where) for index, entry in enumerate(value)
    )
    if all(message["role"] != "assistant" for message in messages[1:]):
        raise InputError(
            f"{where}: field {field!r} has no assistant message after the first, "
            "so there is nothing to learn from it"
        )
    return messages


def _message(entry: object, field: str, where: str) -> Message:
    if not isinstance(entry, Mapping):
        raise InputError(
            f"{where}: field {field!r} is {_kind(entry)}, expected an object with role and content"
        )
    if "role" not in entry and "from" in entry:
        speaker = _text(entry["from"], f"{field}.from", where)
        role = _ROLE_OF.get(speaker, speaker)
        return {"role": role, "content": _text(entry.get("value"), f"{field}.value", where)}
    message: Message = {
        "role": _text(entry.get("role"), f"{field}.role", where),
        "content": _text(entry.get("content"), f"{field}.content", where),
    }
    if not message["role"]:
        raise InputError(f"{where}: field '{field}.role' is empty")
    # Parquet fills what a message does not have with None; templates test for presence.
    rest = {str(k): v for k, v in entry.items() if k not in message and v is not None}
    return message | rest


def _text(value: object, field: str, where: str) -> str:
    if not isinstance(value, str):
        problem = "is missing" if value is None else f"is {_kind(value)}, expected text"
        raise InputError(f"{where}: field {field!r} {problem}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: field {field!r} holds half a surrogate pair, which is not valid text"
        ) from error
    return value


def _kind(value: object) -> str:
    names = {
        str: "text", bool: "true or false", int: "a number", float: "a number",
        list: "an empty list" if not value else "a list", dict: "an object", type(None): "null",
    }  # fmt: skip
    return names.get(type(value), type(value).__name__)
