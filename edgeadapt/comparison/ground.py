"""What all trials stand on: the base, the data, and one set of questions for every contender."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgeadapt.comparison.figures import Groups
from edgeadapt.comparison.recipe import ComparisonRecipe
from edgeadapt.console import log
from edgeadapt.data.encode import Encoded, encode_dataset, encode_example
from edgeadapt.data.examples import Example, as_record
from edgeadapt.data.load import data_hash, load_examples
from edgeadapt.data.source import resolve_data
from edgeadapt.errors import InputError
from edgeadapt.fidelity.task import Task, asked_examples
from edgeadapt.files import atomic_file, sha256_json
from edgeadapt.pipeline.inputs import Inputs, find_inputs, find_task
from edgeadapt.pipeline.workspace import Workspace
from edgeadapt.tokenizer import ModelTokenizer
from edgeadapt.watched import Watched

_NO_LIMIT = 1 << 20


@dataclass(frozen=True)
class Ground:
    """Found and hashed before any work; goes to other processes as it is."""

    recipe: ComparisonRecipe
    root: Path
    inputs: Inputs
    held_out: Path
    """The questions of the domain that every contender is asked: those that are not cut."""
    general: Path
    """Likewise, of what must not be forgotten."""
    documents: Path | None
    task: Task | None

    @property
    def base(self) -> Path:
        """Folder of the base model."""
        return self.inputs.base

    @property
    def train_data(self) -> Path:
        """All of the training data."""
        assert self.inputs.train_data is not None
        return self.inputs.train_data

    def workspace(self) -> Workspace:
        """Where the trials' stages lie."""
        return Workspace(self.root, resume=True, check_inputs=self.inputs.watched.check)

    def tokenizer(self) -> ModelTokenizer:
        """The base's."""
        return ModelTokenizer.from_folder(self.base)

    def groups(self) -> Groups:
        """Which questions the data say to have something in common."""
        asked = {"domain": load_examples(self.held_out), "general": load_examples(self.general)}
        if self.task is not None:
            asked["task"] = asked_examples(self.task)
        return {what: numbers for what, examples in asked.items() if (numbers := grouped(examples))}

    def encoded(self, data: Path) -> list[Encoded]:
        """Questions as tokens, none cut."""
        return encode_dataset(data, self.tokenizer(), _NO_LIMIT)


def find_ground(recipe: ComparisonRecipe, root: Path) -> Ground:
    """Resolve everything that the recipe names, and choose the questions.

    Raises:
        InputError: something is missing, or too few examples are short enough.
    """
    as_run = recipe.as_run(recipe.name, recipe.quantizations[0])
    inputs = find_inputs(as_run)
    train_data, held_out = inputs.train_data, inputs.held_out
    assert train_data is not None
    if held_out is None:
        raise InputError("the recipe names no held-out data to compare on; give data.held_out")
    general, _ = resolve_data(recipe.data.general)
    documents = None
    if recipe.data.documents is not None:
        documents = Path(recipe.data.documents).expanduser()
        if not documents.exists():
            raise InputError(f"data.documents: {documents} does not exist")
    load_examples(train_data)  # a malformed row is better named now
    tokenizer = ModelTokenizer.from_folder(inputs.base)
    evaluate, folder = recipe.evaluate, root / "questions"
    task = find_task(as_run, inputs)
    if task is not None and len(asked_examples(task)) < 2:
        raise InputError(
            f"one question of {task.data} has no margin of error; at least 2 are needed: raise "
            "evaluate.task.examples, or give more data"
        )
    used = (inputs.base, train_data, held_out, general, documents, task and task.data)
    watched = Watched([path for path in used if path])
    inputs.watched.check()  # nothing has changed since its hashes were taken
    return Ground(
        recipe,
        root,
        replace(inputs, watched=watched),
        held_out=_questions(
            held_out, tokenizer, evaluate.max_tokens, evaluate.held_out_examples, folder
        ),
        general=_questions(
            general, tokenizer, evaluate.max_tokens, evaluate.general_examples, folder
        ),
        documents=documents,
        task=task,
    )


def _questions(
    data: Path, tokenizer: ModelTokenizer, max_tokens: int, limit: int, folder: Path
) -> Path:
    """Examples that are not cut, so that every contender is judged by the same answers."""
    examples = [_judged(example) for example in load_examples(data)]
    fitting = [e for e in examples if _fits(encode_example(e, tokenizer, _NO_LIMIT), max_tokens)]
    if len(fitting) < 2:
        raise InputError(
            f"{data} has {len(fitting)} examples of at most {max_tokens} tokens with an answer; "
            "at least 2 are needed: raise evaluate.max_tokens"
        )
    if len(fitting) < len(examples):
        log.info(
            "%d of %d examples of %s have more than %d tokens and are not asked",
            len(examples) - len(fitting), len(examples), data.name, max_tokens,
        )  # fmt: skip
    count = min(limit, len(fitting))
    chosen = [fitting[index * len(fitting) // count] for index in range(count)]
    name = sha256_json([data_hash(data), max_tokens, limit])[:12]
    out = folder / f"{name}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    write_examples(chosen, out)
    return out


def grouped(examples: Sequence[Example]) -> list[int]:
    """Number of the group that each example is of; nothing if each is its own, or all are of one.

    An example whose group is not named is a group of its own.
    """
    numbers: dict[object, int] = {}
    found = [
        numbers.setdefault(index if example.group is None else example.group, len(numbers))
        for index, example in enumerate(examples)
    ]
    if len(numbers) == 1 < len(examples):
        log.warning(
            "all %d questions are of the group %s; their intervals take them for independent",
            len(examples), examples[0].group,
        )  # fmt: skip
    return found if 1 < len(numbers) < len(examples) else []


def _judged(example: Example) -> Example:
    """By its last answer alone: a prompting puts others before it."""
    return example if example.messages is None else replace(example, score="last")


def _fits(encoded: Encoded, max_tokens: int) -> bool:
    return encoded.n_scored > 0 and len(encoded.ids) <= max_tokens


def share_of(data: Path, fraction: float, seed: int, out: Path) -> None:
    """Write a random share of a dataset, at least one example, in its own order."""
    examples = load_examples(data)
    count = max(1, round(fraction * len(examples)))
    chosen = sorted(random.Random(seed).sample(range(len(examples)), count))
    write_examples([examples[index] for index in chosen], out)


def write_examples(examples: Sequence[Example], out: Path) -> None:
    """Write a dataset that `load_examples` reads as these, whole or not at all."""
    with atomic_file(out, overwrite=True) as partial:
        lines = [json.dumps(as_record(example), ensure_ascii=False) for example in examples]
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
