"""A conversation with a loaded model: streamed answers, the KV cache kept from turn to turn."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeadapt.chat_template import Message
from edgeadapt.errors import InputError
from edgeadapt.runtimes.base import Session

if TYPE_CHECKING:
    from edgeadapt.warm.start import WarmStart

_PREFILL_STEP = 128
"""Prompt tokens between two looks at whether the user has interrupted."""


@dataclass
class _Held:
    """What is in the KV cache: the tokens, and the text that they stand for."""

    ids: list[int]
    text: str
    """Empty where only the tokens are known: nothing is held, or a warm prompt."""


class Conversation:
    """Messages so far, and a session whose KV cache holds as much of them as can be reused.

    A turn runs only what is new. The text rendered for it begins, as a rule, with the text that
    the cache stands for, and then only the rest is tokenized: what the model itself said stays
    as the tokens it said. Where the template rewrites earlier turns, token ids are compared
    instead, and where these differ too the cache is emptied and everything is run again; what lies
    in a warm prompt is not.
    """

    def __init__(
        self,
        session: Session,
        *,
        context: int,
        system: str | None = None,
        warm: WarmStart | None = None,
        max_tokens: int = 512,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        """Start a conversation.

        Args:
            session: a loaded model.
            context: most tokens of conversation it sees; no more than its KV cache holds.
            system: a system message to begin with.
            warm: messages to begin with, in its place, that were run already.
            max_tokens: most tokens in an answer.
            temperature: 0 for greedy.
            seed: of the sampling; each turn counts one further.
        """
        self.session = session
        self.messages: list[Message] = []
        self.dropped_turns = 0
        """Turns dropped from the beginning so far, because the context was full."""
        self.reused_tokens = 0
        """Tokens of the last prompt that were in the KV cache already."""
        self.cut = False
        """The last answer reached a limit instead of ending by itself."""
        self._context = min(context, session.capacity - session.start)
        self._remedy = "shorten it" + (
            ", or raise --context" if context <= session.capacity else ""
        )
        self._max_tokens = max_tokens
        self._temperature = temperature
        self._seed = seed
        self._warm = warm
        self._fixed: list[Message] = [{"role": "system", "content": system}] if system else []
        if warm is not None:
            self._fixed = list(warm.prompt.messages)
        self._held = _Held([], "")
        self.reset()

    def reset(self) -> None:
        """Forget everything but the messages that it began with."""
        self.messages = list(self._fixed)
        self._empty_cache()

    def _empty_cache(self) -> None:
        """Nothing but the warm prompt, if there is one, is in the cache then."""
        if self._warm is None:
            self._empty_wholly()
        else:
            self._warm.begin()
            self._held = _Held(list(self._warm.prompt.ids), "")

    def _empty_wholly(self) -> None:
        self.session.reset()
        self._held = _Held([], "")

    def say(self, text: str, *, stop: Callable[[], bool] = lambda: False) -> Iterator[str]:
        """Put a question; yields the answer piece by piece, each valid text.

        Args:
            text: what the user says.
            stop: asked between tokens; when true the answer ends where it is.

        Raises:
            InputError: the question alone does not fit the context, or the template rejects it.
            RuntimeFailure: the engine failed.
        """
        self.messages.append({"role": "user", "content": text})
        try:
            prompt, ids = self._fit()
        except InputError:
            self.messages.pop()
            raise
        if not self._prefill(ids[:-1], stop):  # as if never asked
            self.messages.pop()
            self._empty_cache()
            return
        answer = ""
        for piece in self._answer(ids[-1], stop):
            answer += piece
            yield piece
        self.messages.append({"role": "assistant", "content": answer})
        self._held.text = prompt + answer
        self._seed += 1

    def _fit(self) -> tuple[str, list[int]]:
        """The rendered conversation and the tokens to run for it, oldest turns dropped to fit."""
        room = min(self._max_tokens, self._context // 4)
        while True:
            prompt = self.session.render(self.messages)
            ids = self._new_ids(prompt)
            total = len(self._held.ids) + len(ids)
            if total + room <= self._context:
                self.reused_tokens = len(self._held.ids)
                return prompt, ids
            first = len(self._fixed)
            if len(self.messages) - first <= 1:
                raise InputError(
                    f"this message takes {total} tokens of a context of {self._context}, of which "
                    f"{room} are kept for the answer; {self._remedy}"
                )
            del self.messages[first : first + 2]
            self.dropped_turns += 1

    def _new_ids(self, prompt: str) -> list[int]:
        """Tokens to run so that the cache stands for `prompt`; empties it where it must."""
        held = self._held
        whole = self.session.position - self.session.start == len(held.ids)
        if whole and held.text and len(prompt) > len(held.text) and prompt.startswith(held.text):
            return self.session.encode(prompt[len(held.text) :])
        ids = self.session.encode(prompt)
        if not self._holds_beginning_of(ids):
            self._empty_cache()
        if not self._holds_beginning_of(ids):
            self._empty_wholly()
        return ids[len(self._held.ids) :]

    def _holds_beginning_of(self, ids: Sequence[int]) -> bool:
        """Whether the cache stands for fewer tokens than these, and for their beginning."""
        held = self._held.ids
        if self.session.position - self.session.start != len(held):
            return False
        return len(ids) > len(held) and list(ids[: len(held)]) == held

    def _prefill(self, ids: Sequence[int], stop: Callable[[], bool]) -> bool:
        """Run prompt tokens; false when interrupted."""
        for start in range(0, len(ids), _PREFILL_STEP):
            if stop():
                return False
            part = ids[start : start + _PREFILL_STEP]
            self.session.forward(part)
            self._held.ids += part
        return not stop()

    def _answer(self, last: int, stop: Callable[[], bool]) -> Iterator[str]:
        """Text of the tokens that follow the prompt's last one.

        A character is held back until its last byte is there, and dropped if that never comes.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        held = self._held.ids
        limit = min(self._max_tokens, self._context - len(held) - 1)
        pending, count = last, 0
        tokens = self.session.generate(
            [last], max_tokens=limit, temperature=self._temperature, seed=self._seed
        )
        for token in tokens:
            held.append(pending)
            pending = token
            piece = decoder.decode(self.session.token_bytes(token))
            if piece:
                yield piece
            if stop():
                self.session.forward([token])  # generate() would have: cache and text must agree
                break
            count += 1
        held.append(pending)
        self.cut = count == limit
