"""How much longer a prompting makes prompts, in the model's own tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edgeadapt.beginnings import common_beginning
from edgeadapt.chat_template import Message
from edgeadapt.data.encode import encode_example
from edgeadapt.prompting.base import Applied
from edgeadapt.tokenizer import ModelTokenizer


@dataclass(frozen=True)
class PromptLengths:
    """Tokens of a dataset's prompts, with the turn that the answer begins."""

    questions: int
    plain_mean: float
    """Of a prompt without the prompting."""
    added_mean: float
    added_max: int
    """Of what the prompting adds to a question."""
    shared: int
    """Added tokens that stand, alike, at the beginning of every prompt: they can be prefilled once
    and kept. 0 for a single question, of which that cannot be told."""
    longest: int
    """Of the longest prompt with its answer: the context that scoring needs."""

    @property
    def added_each(self) -> float:
        """Added tokens that every question pays for, on average, when the shared ones are kept."""
        return max(0.0, self.added_mean - self.shared)

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self) | {"added_each": self.added_each}


def prompt_lengths(applied: Applied, tokenizer: ModelTokenizer) -> PromptLengths:
    """Count the tokens of an applied prompting, question by question.

    Raises:
        InputError: the model has no chat template, or it rejects the messages.
    """
    plain = [prompt_tokens(example.question(), tokenizer) for example in applied.plain]
    prompted = [prompt_tokens(example.question(), tokenizer) for example in applied.prompted]
    added = [len(after) - len(before) for before, after in zip(plain, prompted, strict=True)]
    # What every plain prompt begins with (a system turn, the opening of the user's) is not added.
    alike = len(common_beginning(prompted)) - len(common_beginning(plain))
    common = alike if len(prompted) > 1 else 0
    return PromptLengths(
        questions=len(added),
        plain_mean=float(np.mean([len(ids) for ids in plain])),
        added_mean=float(np.mean(added)),
        added_max=max(added),
        shared=max(0, min(common, *added)),
        longest=max(
            len(encode_example(example, tokenizer, 1 << 30).ids) for example in applied.prompted
        ),
    )


def prompt_tokens(messages: Sequence[Message], tokenizer: ModelTokenizer) -> list[int]:
    """Token ids of a conversation up to where the answer begins."""
    return tokenizer.encode(tokenizer.render(messages, add_generation_prompt=True))
