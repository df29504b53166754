"""A prompting: the conversation up to the question with what it adds, and datasets made of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from edgeadapt.chat_template import Message
from edgeadapt.console import progress
from edgeadapt.data.examples import Example, as_record
from edgeadapt.data.load import load_examples
from edgeadapt.errors import InputError
from edgeadapt.files import atomic_file
from edgeadapt.tokenizer import ModelTokenizer


class Prompting(Protocol):
    """A way to ask."""

    @property
    def name(self) -> str:
        """What tables call it: `few-shot`, `bm25`, ..."""
        ...

    def messages(self, example: Example) -> tuple[Message, ...]:
        """The conversation up to the question, with what the prompting adds to it.

        Args:
            example: has a question (`Example.question`); its answer is not to be looked at, save
                to leave out what would give it away.
        """
        ...


@dataclass(frozen=True)
class Plain:
    """The question as it is: what the others are compared with."""

    name: str = "plain"

    def messages(self, example: Example) -> tuple[Message, ...]:
        """The conversation up to the question."""
        return example.question()


@dataclass(frozen=True)
class Applied:
    """A dataset that was written with a prompting."""

    name: str
    """Of the prompting."""
    path: Path
    """A .jsonl file of `messages`, in each of which only the last answer is scored."""
    plain: Sequence[Example]
    """The examples as they were."""
    prompted: Sequence[Example]
    """The same examples, in the same order, as they were written."""

    @property
    def earlier_answers(self) -> int:
        """Answers before the last one, which the plain dataset scores and this one does not."""
        return sum(
            message["role"] == "assistant"
            for example in self.plain
            if example.messages is not None and example.score == "all"
            for message in example.question()[1:]
        )


def apply(
    prompting: Prompting, data: Path, out: Path, tokenizer: ModelTokenizer | None = None
) -> Applied:
    """Write a dataset as the model would be asked with a prompting.

    The last answer of each example alone is scored: turns before it are part of the prompt. Choices
    stay with their question.

    Args:
        prompting: what to add.
        data: see `load_examples`.
        out: the .jsonl file to write.
        tokenizer: of the model; sees that its chat template takes the messages.

    Raises:
        InputError: `out` exists or does not end in .jsonl, the data cannot be read, or an example
            is plain text, which has no question to add anything to: if it were kept as it is, its
            figures would say that the prompting changes nothing; or the model has no chat
            template, or it rejects the messages. Nothing is written then.
    """
    if out.suffix.lower() != ".jsonl":
        raise InputError(f"{out} does not end in .jsonl; give such a name to --out")
    if out.exists():
        raise InputError(f"{out} exists already; choose another --out, or remove it first")
    examples = load_examples(data)
    check_questions(examples, data)
    if tokenizer is not None:
        check_template(tokenizer)
    with progress(f"{prompting.name} prompts", len(examples), "questions") as advance:
        prompted = []
        for example in examples:
            prompted.append(_prompted(prompting, example))
            if tokenizer is not None:
                tokenizer.render(prompted[-1].messages or (), add_generation_prompt=False)
            advance()
    with atomic_file(out) as partial, partial.open("w", encoding="utf-8") as file:
        for example in prompted:
            file.write(json.dumps(as_record(example), ensure_ascii=False) + "\n")
    return Applied(prompting.name, out, examples, prompted)


def check_questions(examples: Sequence[Example], data: Path) -> None:
    """See that all examples have a question.

    Raises:
        InputError: some are plain text.
    """
    texts = sum(example.text is not None for example in examples)
    if texts:
        raise InputError(
            f"{texts} of {len(examples)} examples of {data} are plain text, which has no question "
            "to add anything to; give 'messages', or 'prompt' and 'completion'"
        )


def check_template(tokenizer: ModelTokenizer) -> None:
    """See that a model reads conversations.

    Raises:
        InputError: it has no chat template.
    """
    if tokenizer.chat_template is None:
        raise InputError(
            "this model has no chat template, so it knows no turns to put examples or passages "
            "into; give a --base that was made for chat, such as an instruct model"
        )


def _prompted(prompting: Prompting, example: Example) -> Example:
    answer: Message = {"role": "assistant", "content": example.answer()}
    if example.messages is not None:  # whatever else the template reads of it
        answer = example.messages[len(example.question())]
    messages = (*prompting.messages(example), answer)
    return replace(example, messages=messages, prompt=None, completion=None, score="last")
