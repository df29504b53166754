"""What a run works on: the recipe's models and data, found and hashed before any work begins."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeadapt.adapters.spec import (
    CONFIG,
    PROMPT_METHODS,
    adapter_identity,
    describe_spec,
    trained_system,
)
from edgeadapt.adapters.vocabulary import folder_with_texts
from edgeadapt.artifact import open_artifact
from edgeadapt.base_model import base_hash, file_sha256, resolve_base
from edgeadapt.data.encode import Encoded
from edgeadapt.data.examples import Example
from edgeadapt.data.load import load_examples
from edgeadapt.data.source import held_out_part, resolve_data
from edgeadapt.errors import InputError
from edgeadapt.export import MergeBase, ModelToExport, open_model
from edgeadapt.fidelity.merge_base import MergeChoice
from edgeadapt.fidelity.task import Task, check_task
from edgeadapt.fidelity.text import held_out_text, is_text
from edgeadapt.files import read_json
from edgeadapt.recipe import Recipe
from edgeadapt.tokenizer import ModelTokenizer
from edgeadapt.watched import Watched


@dataclass(frozen=True)
class Inputs:
    """What the recipe names, found and hashed."""

    base: Path
    base_sha256: str
    train_data: Path | None
    held_out: Path | None
    adapter: Path | None
    system: str | None
    """Prompt before every conversation that has none, in training and in what is asked."""
    watched: Watched
    """All of these."""

    @property
    def texts(self) -> Path:
        """Folder of the tokenizer and chat template: the base's, or those of a given adapter."""
        return folder_with_texts(self.base, [self.adapter] if self.adapter else [])


@dataclass(frozen=True)
class Adapted:
    """The adapter of the run, trained here or given; `model` is a fully trained model instead."""

    adapter: Path | None
    model: Path | None
    sha256: str | None
    """Of its weights."""
    record: dict[str, Any]
    identity: str | None = None
    """Of all that shapes the merge: the weights, the config that scales them, and the base's."""
    merge: MergeChoice | None = None
    """What the adapter is merged onto; none where nothing is merged, or not chosen yet."""

    @property
    def onto(self) -> MergeBase:
        """The weights to merge into."""
        return self.merge.onto if self.merge else "original"

    def open(self, recipe: Recipe) -> ModelToExport:
        """The model to export."""
        if self.model is not None:
            return replace(open_model(str(self.model)), name=recipe.name)
        model = open_model(
            recipe.base,
            self.adapter,
            revision=recipe.revision,
            merge_onto=self.onto,
            trained_on=recipe.trained_on,
        )
        if self.merge is not None:
            model.lineage["merge"] |= self.merge.record()
        return model


def find_inputs(recipe: Recipe) -> Inputs:
    """Resolve everything the recipe names, before any work begins.

    Raises:
        InputError: something is missing.
    """
    adapter = Path(recipe.adapter).expanduser() if recipe.adapter else None
    if adapter is not None and (adapter / CONFIG).is_file():
        _check_mergeable(adapter)
    train_data, held_out = None, None
    if recipe.data.train is not None:
        train_data, held_out = resolve_data(recipe.data.train)
    if recipe.data.held_out is not None:
        held_out = held_out_part(recipe.data.held_out)
    if train_data is not None and recipe.train is not None:
        load_examples(train_data)  # a malformed row is better named now
    base = resolve_base(recipe.base, revision=recipe.revision)
    watched = Watched([path for path in (base, train_data, held_out, adapter) if path])
    if recipe.train is not None:
        system = recipe.train.system
    else:
        system = trained_system(adapter) if adapter is not None else open_artifact(base).system
    return Inputs(base, base_hash(base), train_data, held_out, adapter, system, watched)


def _check_mergeable(adapter: Path) -> None:
    """Refuse what changes no weight, for a run measures merged models.

    Raises:
        InputError: `adapter` is a prefix or a prompt.
    """
    spec = describe_spec(adapter)
    if spec.peft_type in PROMPT_METHODS:
        raise InputError(
            f"a run merges its adapter, and {spec.method} in {adapter} changes no weight; ship it "
            "with edgeadapt export --adapter-mode separate --out p.safetensors, and measure it "
            "with evaluate --beside p.safetensors"
        )


def adapted(path: Path) -> Adapted:
    """Describe an adapter folder, or a fully trained model folder."""
    record_path = path / "edgeadapt.json"
    record = _read_optional(record_path)
    if (path / "adapter_config.json").is_file():
        digest = file_sha256(path / "adapter_model.safetensors")
        return Adapted(path, None, digest, record, adapter_identity(path))
    digest = base_hash(path)
    return Adapted(None, path, digest, record, digest)


def find_task(recipe: Recipe, inputs: Inputs) -> Task | None:
    """The recipe's task, on data that is there.

    Raises:
        InputError: there is no such data or metric.
    """
    wished = recipe.evaluate.task
    if wished is None:
        return None
    data = held_out_part(wished.data) if wished.data else inputs.held_out
    if data is None:
        raise InputError("evaluate.task needs questions: give data.held_out, or its own data")
    task = Task(wished.metric, data, wished.examples, wished.max_tokens, inputs.system)
    check_task(task)
    return task


def held_out_sequences(recipe: Recipe, inputs: Inputs) -> list[Encoded]:
    """The held-out examples, or windows of a text file, that everything is scored on.

    Raises:
        InputError: the recipe has no held-out data.
    """
    if inputs.held_out is None:
        raise InputError(
            "the recipe names no held-out data, so nothing can be scored; give data.held_out"
        )
    return held_out_text(
        inputs.held_out,
        ModelTokenizer.from_folder(inputs.texts),
        max_tokens=recipe.evaluate.max_tokens,
        window=recipe.evaluate.max_tokens,
        limit=recipe.evaluate.held_out_examples,
        system=inputs.system,
    )


def sample_prompts(recipe: Recipe, inputs: Inputs) -> list[str]:
    """The recipe's sample questions, or three from the held-out data."""
    if recipe.evaluate.prompts or inputs.held_out is None or is_text(inputs.held_out):
        return list(recipe.evaluate.prompts)
    questions = [q for q in map(_question, load_examples(inputs.held_out)) if q]
    return [questions[i * len(questions) // 3] for i in range(min(3, len(questions)))]


def _question(example: Example) -> str | None:
    if example.prompt is not None:
        return example.prompt
    for message in example.messages or ():
        if message["role"] == "user":
            return str(message["content"])
    return None


def _read_optional(path: Path) -> dict[str, Any]:
    record = read_json(path) if path.is_file() else {}
    return record if isinstance(record, dict) else {}
