"""The settings of a method that a sweep leaves open, chosen on a slice of the training data."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeadapt.comparison.ground import Ground, write_examples
from edgeadapt.comparison.recipe import Trial
from edgeadapt.console import progress
from edgeadapt.data.load import data_hash, load_examples
from edgeadapt.errors import InputError
from edgeadapt.files import write_json
from edgeadapt.pipeline.stages import TRAINING_TOOLS
from edgeadapt.pipeline.workspace import Workspace
from edgeadapt.training.sweep import best
from edgeadapt.worker import run_job

_SHARE, _MOST = 0.1, 64


@dataclass(frozen=True)
class Tried:
    """What came of the combinations in a payload of `run_sweep`."""

    tried: list[dict[str, Any]]
    seconds: float | None = None
    """What it took, parts before a kill included; None if only the stage knows."""


Search = Callable[[Trial, dict[str, Any]], Tried]


def one_by_one(trial: Trial, payload: dict[str, Any]) -> Tried:
    """Combinations one after another, in a child process."""
    with progress(f"sweep of {trial}", 0, "steps") as advance:
        return Tried(**run_job("sweep", payload, on_progress=advance))


def swept(
    space: Workspace, ground: Ground, trial: Trial, data: Path, search: Search = one_by_one
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Try every combination, from a stage of its own.

    Returns:
        The values chosen, and the record: `chosen`, `tried`, `validation_examples`; nothing and
        None where the method has no sweep.

    Raises:
        InputError: there are too few training examples to put some aside.
        DivergedError: all combinations did.
    """
    if not trial.wish.sweep:
        return {}, None
    recipe, wish = ground.recipe, trial.wish
    combinations = [
        {
            "values": values,
            "settings": recipe.settings(wish, trial.seed, values).model_dump(mode="json"),
        }
        for values in wish.combinations()
    ]
    key = {"base": ground.inputs.base_sha256, "data": data_hash(data), "tried": combinations}

    def work(folder: Path) -> None:
        examples = _put_aside(data, trial.seed, folder)
        payload = {
            "base": str(ground.base),
            "data": str(folder / "train.jsonl"),
            "validation": str(folder / "validation.jsonl"),
            "base_spec": recipe.base,
            "folder": str(folder),
            "combinations": combinations,
        }
        found = search(trial, payload)
        write_json(folder / "sweep.json", {
            "tried": found.tried, "chosen": best(found.tried)["values"],
            "validation_examples": examples, "seconds": found.seconds,
        })  # fmt: skip

    stage = space.stage(f"sweep-{trial.slug}", key, work, tools=TRAINING_TOOLS, reads_first=True)
    record: dict[str, Any] = stage.read("sweep.json")
    seconds = record.get("seconds")
    return record["chosen"], record | {"seconds": stage.seconds if seconds is None else seconds}


def _put_aside(data: Path, seed: int, folder: Path) -> int:
    """Part the training data: a tenth validates, at most 64 examples."""
    examples = load_examples(data)
    count = min(_MOST, max(1, round(_SHARE * len(examples))))
    if count >= len(examples):
        raise InputError(f"{data} has {len(examples)} examples; a sweep needs at least 2")
    aside = set(random.Random(seed).sample(range(len(examples)), count))
    for name, wanted in (("validation", True), ("train", False)):
        chosen = [one for number, one in enumerate(examples) if (number in aside) == wanted]
        write_examples(chosen, folder / f"{name}.jsonl")
    return count
