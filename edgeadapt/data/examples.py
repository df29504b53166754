"""One training or evaluation example, whatever file and form it came in."""

from __future__ import annotations

import json
import math
import string
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from edgeadapt.chat_template import Message
from edgeadapt.errors import InputError

_ROLE_OF = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
"""ShareGPT's speaker names (`conversations` with `from` and `value`) as chat roles."""

Answers = Literal["all", "last"]

_EXPECTED = (
    "expected 'messages' (a list of role and content), 'prompt' and 'completion', 'prompt', "
    "'choices' and 'answer', or 'text'"
)


@dataclass(frozen=True)
class Example:
    """Exactly one form is set: `messages`, or `prompt` with `completion`, or `text`."""

    messages: tuple[Message, ...] | None = None
    prompt: str | None = None
    completion: str | None = None
    text: str | None = None
    choices: tuple[str, ...] | None = None
    """Answers to choose from; the right one is `completion`, or the last answer of `messages`."""
    score: Answers = "all"
    """Which answers of `messages` are scored. Only the last one where those before it are part of
    the prompt: examples that were put there to be followed."""
    group: str | None = None
    """What it shares with other examples: a document, an author, a module. Those of one group are
    no independent observations."""

    def question(self) -> tuple[Message, ...]:
        """The conversation up to its last answer.

        Raises:
            InputError: the example is plain text.
        """
        if self.messages is not None:
            return self.messages[: self._last_answer(self.messages)]
        if self.prompt is None:
            raise InputError("plain text has no question and no answer")
        return ({"role": "user", "content": self.prompt},)

    def answer(self) -> str:
        """The last answer; empty for plain text."""
        if self.messages is not None:
            return str(self.messages[self._last_answer(self.messages)]["content"])
        return self.completion or ""

    def answered(self, answer: str) -> Example:
        """The same question with another answer, which alone is scored."""
        if self.messages is None:
            return replace(self, completion=answer)
        turn: Message = {"role": "assistant", "content": answer}
        return replace(self, messages=(*self.question(), turn), score="last")

    @staticmethod
    def _last_answer(messages: tuple[Message, ...]) -> int:
        return max(i for i, message in enumerate(messages) if message["role"] == "assistant")


def parse_example(record: object, where: str) -> Example:
    """Normalise one row of a dataset.

    The first form whose fields are present is taken: `messages`, `conversations`, `choices`
    (with `prompt` or `question`, and `answer`), `prompt` + `completion`, `text`. Where a prompt
    and its completion are lists of messages (TRL's conversational form) they become one
    conversation.

    Beside `messages`, `score: "last"` says that only the last answer is scored, and then `choices`
    may list texts of which that answer is one. Any other `score` is a column of another meaning,
    such as a rating. `group` beside any of them, a text or a number, names what the example shares
    with others.

    Args:
        record: the row, field name -> value.
        where: file and line, for messages.

    Raises:
        InputError: a field is missing or has the wrong kind of value; names `where` and the field.
    """
    if not isinstance(record, Mapping):
        raise InputError(f"{where}: found {_kind(record)}, expected an object; {_EXPECTED}")
    return replace(_any_form(record, where), group=_group(record.get("group"), where))


def _group(value: object, where: str) -> str | None:
    """A name, or a number as text: 2.0 is 2, as tables with gaps store whole numbers."""
    if isinstance(value, str):
        return _text(value, "group", where) or None
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return str(int(value)) if value.is_integer() else repr(value)
    return str(value) if isinstance(value, int) else None


def _any_form(record: Mapping[str, object], where: str) -> Example:
    present = {key for key, value in record.items() if value is not None}
    if "messages" in present:
        messages = _messages(record["messages"], "messages", where)
        example = Example(
            messages=messages, score="last" if record.get("score") == "last" else "all"
        )
        if example.score == "last" and "choices" in present:
            return replace(example, choices=_beside(example, record["choices"], where))
        return example
    if "conversations" in present:
        return Example(messages=_messages(record["conversations"], "conversations", where))
    if "choices" in present:
        return _choices(record, where)
    if "prompt" in present or "completion" in present:
        for field in ("prompt", "completion"):
            if field not in present:
                raise InputError(f"{where}: field {field!r} is missing")
        return _completion(record["prompt"], record["completion"], where)
    if "text" in present:
        return Example(text=_text(record["text"], "text", where))
    found = ", ".join(repr(str(key)[:40]) for key in list(record)[:8]) or "no field"
    raise InputError(f"{where}: found {found}; {_EXPECTED}")


def as_record(example: Example) -> dict[str, object]:
    """The row that `parse_example` reads as this example."""
    return _form(example) | ({} if example.group is None else {"group": example.group})


def _form(example: Example) -> dict[str, object]:
    if example.text is not None:
        return {"text": example.text}
    if example.messages is not None:
        row: dict[str, object] = {"messages": [dict(message) for message in example.messages]}
        if example.score == "last":
            row["score"] = "last"
        if example.choices is not None:
            row["choices"] = list(example.choices)
        return row
    if example.choices is not None:
        answer = example.choices.index(str(example.completion))
        return {"prompt": example.prompt, "choices": list(example.choices), "answer": answer}
    return {"prompt": example.prompt, "completion": example.completion}


def _completion(prompt: object, completion: object, where: str) -> Example:
    if isinstance(prompt, (list, tuple)) and isinstance(completion, (list, tuple)):
        return Example(messages=_messages([*prompt, *completion], "completion", where))
    return Example(
        prompt=_text(prompt, "prompt", where), completion=_text(completion, "completion", where)
    )


def _beside(example: Example, given: object, where: str) -> tuple[str, ...]:
    """Choices beside a conversation, one of which is its last answer."""
    if isinstance(given, str):  # CSV has no lists: JSON in the cell
        given = _json(given, "choices", where)
    choices = _choice_texts(given, where)
    if example.answer() not in choices:
        raise InputError(f"{where}: the last answer is none of the texts in field 'choices'")
    return choices


def _choice_texts(given: object, where: str) -> tuple[str, ...]:
    if not isinstance(given, (list, tuple)) or len(given) < 2:
        raise InputError(
            f"{where}: field 'choices' is {_kind(given)}, expected a list of texts, two or more"
        )
    return tuple(_text(choice, f"choices[{i}]", where) for i, choice in enumerate(given))


def _choices(record: Mapping[str, object], where: str) -> Example:
    """A multiple-choice question; `answer` is the right choice's number from 0, label or text.

    ARC's form is known too: `choices` with lists `text` and `label`, and `answerKey`.
    """
    given: object = record["choices"]
    labels: object = string.ascii_uppercase
    if isinstance(given, str):  # CSV has no lists: JSON in the cell
        given = _json(given, "choices", where)
    if isinstance(given, Mapping):
        labels = given.get("label") or labels
        given = given.get("text")
    choices = _choice_texts(given, where)
    answer = record.get("answer", record.get("answerKey"))
    names = labels if isinstance(labels, (list, tuple, str)) else ""
    if len(names) < len(choices):
        raise InputError(f"{where}: field 'choices' has {len(choices)} texts, fewer labels")
    named: list[object] = [
        *range(len(choices)), *map(str, names[: len(choices)]), *choices,
    ]  # fmt: skip
    if answer not in named:
        number: list[object] = [str(index) for index in range(len(choices))]
        if answer not in number:
            raise InputError(
                f"{where}: field 'answer' is {str(answer)[:40]!r}, expected the right choice's "
                f"number from 0 to {len(choices) - 1}, its label, or its text"
            )
        named = number  # as CSV has it
    prompt = _text(record.get("prompt", record.get("question")), "prompt", where)
    right = choices[named.index(answer) % len(choices)]
    return Example(prompt=prompt, completion=right, choices=choices)


def parse_messages(value: object, field: str, where: str) -> tuple[Message, ...]:
    """Check a list of chat messages, each with a role and a text as content.

    Args:
        value: the list.
        field: what it is called, for messages.
        where: file and line, for messages.

    Raises:
        InputError: it is no such list; names `where` and the field.
    """
    if not isinstance(value, (list, tuple)) or not value:
        raise InputError(f"{where}: field {field!r} is {_kind(value)}, expected a list of messages")
    return tuple(_message(entry, f"{field}[{index}]", where) for index, entry in enumerate(value))


def _messages(value: object, field: str, where: str) -> tuple[Message, ...]:
    if isinstance(value, str):  # CSV has no lists: JSON in the cell
        value = _json(value, field, where)
    messages = parse_messages(value, field, where)
    if all(message["role"] != "assistant" for message in messages[1:]):
        raise InputError(
            f"{where}: field {field!r} has no assistant message after the first, "
            "so there is nothing to learn from it"
        )
    return messages


def _json(text: str, field: str, where: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: field {field!r} is not a JSON list: {error}") from error


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
