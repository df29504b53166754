"""Examples of the training data before the question, as turns of the conversation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeadapt.chat_template import Message
from edgeadapt.data.examples import Example, parse_example
from edgeadapt.errors import InputError
from edgeadapt.files import read_json, write_json

Shot = tuple[Message, ...]
"""One example, from the user's turn to the answer, without a system message."""


@dataclass(frozen=True)
class FewShot:
    """The same examples before every question."""

    shots: tuple[Shot, ...]
    system: Message | None = None
    """System message that all of them came with; goes before questions that have none."""
    name: str = "few-shot"

    def messages(self, example: Example) -> tuple[Message, ...]:
        """System message, shots, and the conversation up to the question.

        A shot that is the example itself is left out: it would hold the answer.
        """
        own = example.question()
        system, rest = split_system(own)
        if not system and self.system is not None:
            system = (self.system,)
        itself = (*rest, {"role": "assistant", "content": example.answer()})
        shots = [shot for shot in self.shots if _said(shot) != _said(itself)]
        return (*system, *(message for shot in shots for message in shot), *rest)

    def prompt(self) -> list[Message]:
        """What stands before every question: a list of messages, to be prefilled once."""
        system = [] if self.system is None else [self.system]
        return [*system, *(message for shot in self.shots for message in shot)]

    def write(self, path: Path) -> None:
        """Write `prompt` as JSON.

        Raises:
            InputError: as `check_prompt_name`, or its folder cannot be made.
        """
        check_prompt_name(path)
        write_json(path, self.prompt(), overwrite=False)


def check_prompt_name(path: Path) -> None:
    """See that a prompt can be written to a file, and is read again as one, by its name.

    Raises:
        InputError: it does not end in .json, or is there already.
    """
    if path.suffix.lower() != ".json":
        raise InputError(f"{path} does not end in .json; give such a name to --out")
    if path.exists():
        raise InputError(f"{path} exists already; choose another --out, or remove it first")


def read_few_shot(path: Path) -> FewShot:
    """What `FewShot.write` wrote, or any JSON list of messages that ends with an answer.

    Raises:
        InputError: the file is missing, or holds something else.
        CorruptFileError: it is not JSON.
    """
    messages = parse_example({"messages": read_json(path)}, str(path)).messages or ()
    if messages[-1]["role"] != "assistant":
        raise InputError(f"{path} ends with a question; expected an answer as its last message")
    system, rest = split_system(messages)
    if len(system) > 1:
        raise InputError(f"{path} begins with {len(system)} system messages; expected at most one")
    shots: list[Shot] = []
    turn: list[Message] = []
    for message in rest:
        turn.append(message)
        if message["role"] == "assistant":
            shots.append(tuple(turn))
            turn = []
    return FewShot(tuple(shots), system[0] if system else None)


def few_shot_of(examples: Iterable[Example]) -> FewShot:
    """A prompting of these examples, in this order.

    Raises:
        InputError: one of them is plain text.
    """
    shots, systems = [], []
    for example in examples:
        system, rest = split_system(example.question())
        shots.append((*rest, {"role": "assistant", "content": example.answer()}))
        systems.append(system)
    alike = bool(systems) and len(systems[0]) == 1 and all(s == systems[0] for s in systems)
    return FewShot(tuple(shots), systems[0][0] if alike else None)


def split_system(
    messages: Sequence[Message],
) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """System messages at the head of a conversation, and what follows them."""
    head = 0
    while head < len(messages) and messages[head]["role"] == "system":
        head += 1
    return tuple(messages[:head]), tuple(messages[head:])


def _said(messages: Iterable[Message]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in messages]
