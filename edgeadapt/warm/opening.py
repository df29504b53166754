"""The text and tokens that every conversation with the same first messages begins with."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgeadapt.beginnings import common_beginning
from edgeadapt.chat_template import Message, clock_at
from edgeadapt.errors import UnsupportedError

_QUESTIONS = ("A", "s", "7", " x", "\nx", ".", "é", "日", "<")
"""What may follow, of different kinds: a tokenizer may join its first character to what is before
it, and those tokens are not common to all."""
_OTHER_DAY = datetime.datetime(2001, 2, 3, 4, 5)

Render = Callable[[Sequence[Message]], str]
Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Opening:
    """What all conversations have in common that begin with some messages."""

    text: str
    """Under the chat template."""
    ids: tuple[int, ...]
    """Tokens; the text may go on for a few characters that belong to a token after them."""


def common_opening(messages: Sequence[Message], render: Render, encode: Encode) -> Opening:
    """Render conversations that go on in different ways, and take what does not differ.

    Args:
        messages: those that each of them begins with.
        render: of a conversation to text, ending where an answer begins.
        encode: of text to token ids.

    Raises:
        InputError: there is no chat template, or it rejects the messages.
        UnsupportedError: the template does not keep the messages at the beginning.
    """
    texts = [render([*messages, _user(question)]) for question in _QUESTIONS]
    turns = [_user("A"), {"role": "assistant", "content": "s"}, _user("7")]
    texts.append(render([*messages, *turns]))
    with clock_at(_OTHER_DAY):
        if render([*messages, _user(_QUESTIONS[0])]) != texts[0]:
            raise UnsupportedError(
                "the chat template writes the date into what comes before the first answer, so "
                "that a state computed today is wrong tomorrow; put a fixed date in the place of "
                "strftime_now in the base's chat template, and export again"
            )
    text = "".join(common_beginning(texts))
    _check_whole(messages, text)
    ids = common_beginning([encode(one) for one in texts])
    if not ids:
        raise UnsupportedError("no token is common to all conversations that begin like this")
    return Opening(text, tuple(ids))


def starts_alike(messages: Sequence[Message], opening: Opening, render: Render) -> bool:
    """Whether a conversation with these first messages still begins with this text."""
    return render([*messages, _user(_QUESTIONS[0])]).startswith(opening.text)


def tokens_alike(
    messages: Sequence[Message], opening: Opening, render: Render, encode: Encode
) -> bool:
    """Whether it still begins with these tokens."""
    ids = encode(render([*messages, _user(_QUESTIONS[0])]))
    return tuple(ids[: len(opening.ids)]) == opening.ids


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _check_whole(messages: Sequence[Message], text: str) -> None:
    """See that all of the messages lie in the common text, in order; templates may trim them."""
    at = 0
    for number, message in enumerate(messages, start=1):
        content = message["content"].strip()
        found = text.find(content, at)
        if found < 0:
            raise UnsupportedError(
                f"the chat template does not keep this prompt at the beginning: how it writes "
                f"message {number} ({message['role']}) depends on what follows, so that no state "
                "of it can be kept; give a JSON list that says it in a first user message"
            )
        at = found + len(content)
