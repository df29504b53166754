"""The user's own measure of quality: answers against expected ones, or choices by likelihood.

A metric is a function of the model's answer and the expected one that returns a number. Other
packages add theirs as entry points of the group `edgeadapt.metrics`; `multiple-choice` alone
generates nothing and takes the choice that the model thinks likeliest.
"""

from __future__ import annotations

import collections
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeadapt.console import progress
from edgeadapt.data.encode import encode_example, with_system
from edgeadapt.data.examples import Example
from edgeadapt.data.load import load_examples
from edgeadapt.errors import InputError
from edgeadapt.fidelity.compare import Engine
from edgeadapt.fidelity.metrics import Estimate, Float64Array, mean
from edgeadapt.jobs import Scored, sample, score
from edgeadapt.plugins import Registry
from edgeadapt.tokenizer import ModelTokenizer

MULTIPLE_CHOICE = "multiple-choice"

_METRICS = Registry(
    "task metric",
    "edgeadapt.metrics",
    {
        "exact-match": "edgeadapt.fidelity.task:exact_match",
        "f1": "edgeadapt.fidelity.task:f1",
        "rouge-l": "edgeadapt.fidelity.task:rouge_l",
        MULTIPLE_CHOICE: "edgeadapt.fidelity.task:exact_match",
    },
)


@dataclass(frozen=True)
class Task:
    """What to measure, on what."""

    metric: str
    data: Path
    examples: int = 32
    """Most of them, evenly spaced over the data."""
    max_tokens: int = 64
    """Longest answer."""
    system: str | None = None
    """Put before the questions that have no system prompt, as training did."""


@dataclass(frozen=True)
class TaskResult:
    """The metric's mean over the examples."""

    metric: str
    score: Estimate
    examples: int
    values: Float64Array
    """Of each example, for paired comparisons; shape (examples,)."""

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {"metric": self.metric, "examples": self.examples} | self.score.record()


def check_task(task: Task) -> None:
    """See that a task can be measured, before any work.

    Raises:
        InputError: there is no such metric, or the data has no such examples.
    """
    _METRICS.load(task.metric)
    asked_examples(task)


def measure_task(
    path: Path, task: Task, tokenizer: ModelTokenizer, *, engine: Engine, label: str
) -> TaskResult:
    """Ask an artifact the task's questions, on its runtime.

    Args:
        path: the artifact.
        task: what to ask.
        tokenizer: the model's, to encode choices.
        engine: what to run the artifact on.
        label: what the progress bar calls the artifact.

    Raises:
        InputError: the metric or the data cannot be used, or the artifact cannot be opened.
        RuntimeFailure: the engine failed.
    """
    metric = _METRICS.load(task.metric)
    examples = asked_examples(task)
    if task.system is not None:
        examples = [with_system(example, task.system, tokenizer) for example in examples]
    if task.metric == MULTIPLE_CHOICE:
        values = _choose(path, examples, tokenizer, engine, f"{task.metric} of {label}")
    else:
        title = f"{task.metric} of {label}"
        with progress(title, len(examples), "answers") as advance:
            answers = sample(
                path,
                [example.question() for example in examples],
                max_tokens=task.max_tokens,
                adapter=engine.adapter,
                runtime=engine.runtime,
                threads=engine.threads,
                timeout_s=engine.timeout_s,
                on_progress=advance,
            )
        values = [
            _value(metric, task.metric, answer.text, example.answer())
            for answer, example in zip(answers, examples, strict=True)
        ]
    scores = np.asarray(values, np.float64)
    return TaskResult(task.metric, mean(scores, np.arange(len(scores))), len(examples), scores)


def _value(metric: Any, name: str, answer: str, expected: str) -> float:
    """What a metric gives, which may be another package's."""
    try:
        value = float(metric(answer, expected))
    except Exception as error:
        raise InputError(f"the metric {name} failed: {type(error).__name__}: {error}") from error
    if not np.isfinite(value):
        raise InputError(f"the metric {name} gave {value}, expected a finite number")
    return value


def asked_examples(task: Task) -> list[Example]:
    """Those of the task's data that are asked, spread evenly over all that can be.

    Raises:
        InputError: the data cannot be used, or has no such examples.
    """
    usable = [
        example
        for example in load_examples(task.data)
        if example.text is None and (task.metric != MULTIPLE_CHOICE or example.choices)
    ]
    if not usable:
        wanted = "choices" if task.metric == MULTIPLE_CHOICE else "a question and its answer"
        raise InputError(
            f"{task.data} has no example with {wanted}, which the metric {task.metric} needs"
        )
    count = min(task.examples, len(usable))
    return [usable[index * len(usable) // count] for index in range(count)]


def _choose(
    path: Path, examples: Sequence[Example], tokenizer: ModelTokenizer, engine: Engine, title: str
) -> list[float]:
    """1 for each example whose right choice is the likeliest, 0 for the others."""
    sequences = []
    for example in examples:
        for choice in example.choices or ():
            encoded = encode_example(example.answered(choice), tokenizer, 1 << 20)
            sequences.append(Scored(encoded.ids, encoded.scored))
    with progress(title, len(sequences), "choices") as advance:
        scored = score(
            path, sequences, adapter=engine.adapter, runtime=engine.runtime,
            threads=engine.threads, timeout_s=engine.timeout_s, on_progress=advance,
        )  # fmt: skip
    values, start = [], 0
    for example in examples:
        choices = example.choices or ()
        likeliest = int(np.argmin(scored.nll[start : start + len(choices)]))
        values.append(float(choices[likeliest] == example.answer()))
        start += len(choices)
    return values


def exact_match(answer: str, expected: str) -> float:
    """1 if both say the same, apart from case, punctuation and English articles (as in SQuAD)."""
    return float(_words(answer) == _words(expected))


def f1(answer: str, expected: str) -> float:
    """Harmonic mean of precision and recall over words, normalised as in SQuAD."""
    said, wanted = _words(answer), _words(expected)
    shared = sum((collections.Counter(said) & collections.Counter(wanted)).values())
    return _harmonic_mean(shared, len(said), len(wanted))


def rouge_l(answer: str, expected: str) -> float:
    """F-measure of the longest common subsequence of words (Lin 2004), letters and digits only."""
    said, wanted = (re.findall(r"[^\W_]+", text.lower()) for text in (answer, expected))
    longest = [0] * (len(wanted) + 1)
    for word in said:
        previous = 0
        for index, other in enumerate(wanted, 1):
            above = longest[index]
            longest[index] = previous + 1 if word == other else max(above, longest[index - 1])
            previous = above
    return _harmonic_mean(longest[-1], len(said), len(wanted))


def _harmonic_mean(shared: int, said: int, wanted: int) -> float:
    if not said or not wanted:
        return float(said == wanted)
    return 2 * shared / (said + wanted)


def _words(text: str) -> list[str]:
    """Words as SQuAD's official evaluation compares them."""
    bare = "".join(character for character in text.lower() if character not in string.punctuation)
    return [word for word in bare.split() if word not in {"a", "an", "the"}]
