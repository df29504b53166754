"""One trial: a method with one seed on one share of the data, made, measured and timed.

What it leaves are stages in the comparison's folder; what it returns is JSON.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeadapt.artifact import Artifact
from edgeadapt.comparison.ground import Ground, share_of
from edgeadapt.comparison.measure import PROMPTED, SHIPS, Subject, bench, measure
from edgeadapt.comparison.recipe import PROMPTING, Ship, Trial
from edgeadapt.comparison.sweep import swept
from edgeadapt.console import log
from edgeadapt.data.load import data_hash
from edgeadapt.errors import EdgeAdaptError, RuntimeFailure, UnsupportedError
from edgeadapt.export_separate import export_adapter, export_prefix
from edgeadapt.fidelity.models import ReferenceModel, State, reference_models
from edgeadapt.files import write_json
from edgeadapt.pipeline.inputs import Adapted, adapted
from edgeadapt.pipeline.stages import TRAINING_TOOLS, export_stage
from edgeadapt.pipeline.workspace import StageResult, Workspace
from edgeadapt.planner.model import ModelFacts, model_facts
from edgeadapt.prefix import read_prefix
from edgeadapt.training.apart import read_cost, train_apart

LEDGER = "spent.json"

_PLAIN = Adapted(None, None, None, {})


@dataclass(frozen=True)
class Made:
    """A method's outcome before it is put into a format."""

    model: Adapted
    training: dict[str, Any] | None
    prompting: StageResult | None = None


def run_trial(ground: Ground, trial: Trial) -> dict[str, Any]:
    """Do a trial, or take what was done of it before.

    Returns:
        As JSON: `method`, `label`, `seed`, `fraction`, `training` (what it cost and trained; None)
        and `entries`, one for each way to ship and quantization.

    Raises:
        EdgeAdaptError: a stage failed.
    """
    space = ground.workspace()
    data = data_of(space, ground, trial)
    made = _make(space, ground, trial, data)
    return {
        "method": trial.wish.method,
        "label": trial.wish.label,
        "seed": trial.seed,
        "fraction": trial.fraction,
        "training": made.training,
        "prompting": made.prompting and made.prompting.read(PROMPTED),
        "prompting_s": made.prompting and made.prompting.seconds,
        "entries": list(_entries(space, ground, trial, made)),
    }


def attempt(ground: Ground, trial: Trial) -> dict[str, Any]:
    """As `run_trial`; a method that cannot be trained, exported or run is told as `failed`.

    The plain base has to succeed, and so has what is nobody's fault but the machine's.

    Raises:
        EdgeAdaptError: as `run_trial`, for any other reason.
    """
    try:
        return run_trial(ground, trial)
    except (RuntimeFailure, UnsupportedError) as error:
        if trial.wish.method == "none":
            raise
        return failed(trial, error)


def failed(trial: Trial, error: EdgeAdaptError) -> dict[str, Any]:
    """What is left of a trial that failed, as JSON."""
    log.error("=== %s failed: %s", trial, error)
    return {
        "method": trial.wish.method,
        "label": trial.wish.label,
        "seed": trial.seed,
        "fraction": trial.fraction,
        "failed": str(error),
        "training": None,
        "prompting": None,
        "entries": [],
    }


def data_of(space: Workspace, ground: Ground, trial: Trial) -> Path:
    """The trial's share of the training data."""
    if trial.fraction == 1 or trial.wish.method == "none":
        return ground.train_data
    key = {"data": data_hash(ground.train_data), "fraction": trial.fraction, "seed": trial.seed}

    def work(folder: Path) -> None:
        share_of(ground.train_data, trial.fraction, trial.seed, folder / "train.jsonl")

    name = f"data-{trial.slug}"
    return space.stage(name, key, work).folder / "train.jsonl"


def _make(space: Workspace, ground: Ground, trial: Trial, data: Path) -> Made:
    if trial.wish.method in PROMPTING:
        from edgeadapt.comparison.contenders import prompting_stage

        plain, _ = _artifact(space, ground, trial, _PLAIN, ground.recipe.quantizations[0])
        return Made(_PLAIN, None, prompting_stage(space, ground, trial, data, plain))
    if not trial.wish.trained:
        return Made(_PLAIN, None)
    chosen, sweep = swept(space, ground, trial, data)
    settings = ground.recipe.settings(trial.wish, trial.seed, chosen)
    key = {
        "base": ground.inputs.base_sha256,
        "data": data_hash(data),
        "settings": settings.model_dump(mode="json", exclude={"save_every_s"}),
    }

    def work(folder: Path) -> None:
        resumed = (folder / "work").exists()
        if not (folder / "trained").exists():  # else it was finished just before an interruption
            train_apart(
                ground.base, data, settings, folder / "trained", base_spec=ground.recipe.base,
                work=folder / "work", ledger=folder / LEDGER,
            )  # fmt: skip
        cost = read_cost(folder / LEDGER).record()
        write_json(folder / "cost.json", cost | {"resumed": resumed})
        shutil.rmtree(folder / "work", ignore_errors=True)

    name = f"train-{trial.slug}"
    result = space.stage(name, key, work, tools=TRAINING_TOOLS, reads_first=True)
    model = adapted(result.folder / "trained")
    told = ("steps", "learning_rate", "examples", "trained_parameters", "losses", "quantization")
    training = {key: model.record[key] for key in told} | result.read("cost.json")
    training |= {"sweep": sweep} if sweep else {}
    return Made(model, training)


def _entries(
    space: Workspace, ground: Ground, trial: Trial, made: Made
) -> Iterator[dict[str, Any]]:
    for ship in trial.wish.ships:
        for quantization in ground.recipe.quantizations:
            subject = _subject(space, ground, trial, made, ship, quantization)
            figures = measure(space, ground, subject)
            yield {
                "ship": ship,
                "quantization": quantization,
                "artifact": _file(subject.artifact.path, subject.artifact.size_bytes),
                "positions": subject.positions,
                "model": subject.facts.shape(),
                "beside": subject.beside and _file(subject.beside, subject.beside.stat().st_size),
                **figures,
                "bench": bench(space, ground, subject, figures["prompt"]["mean"]),
            }


def _file(path: Path, size: int) -> dict[str, Any]:
    return {"path": str(path), "bytes": size}


def _subject(
    space: Workspace, ground: Ground, trial: Trial, made: Made, ship: Ship, quantization: str
) -> Subject:
    """What a contender is on the runtime: an artifact, perhaps with a file beside it."""
    merged = ship == "merged" and trial.wish.trained
    model = made.model if merged else _PLAIN
    artifact, facts = _artifact(space, ground, trial, model, quantization)
    beside = None
    if trial.wish.trained and not merged:
        beside = _beside(space, ground, trial, made.model)
    elif made.prompting is not None:
        beside = made.prompting.folder / SHIPS
    return Subject(
        name=f"{trial.slug}-{ship}-{quantization}",
        artifact=artifact,
        facts=facts,
        beside=beside,
        adapter=beside if made.prompting is None else None,
        models=_models(ground, made) if ground.recipe.evaluate.retention else {},
        positions=read_prefix(beside).tokens if beside and trial.wish.starts_the_cache else 0,
        questions=made.prompting.folder if made.prompting else None,
    )  # fmt: skip


def _models(ground: Ground, made: Made) -> dict[State, ReferenceModel]:
    if made.prompting is not None:
        return {}
    model = made.model
    adapters = () if model.adapter is None else (model.adapter,)
    return reference_models(ground.base, adapters, trained=model.model)


def _artifact(
    space: Workspace, ground: Ground, trial: Trial, model: Adapted, quantization: str
) -> tuple[Artifact, ModelFacts]:
    plain = model.adapter is None and model.model is None
    recipe = ground.recipe.as_run("base" if plain else trial.slug, quantization)
    source = model.open(recipe)
    artifact, _ = export_stage(space, recipe, ground.inputs, model, source, "gguf", quantization)
    return artifact, model_facts(source.source)


def _beside(space: Workspace, ground: Ground, trial: Trial, model: Adapted) -> Path:
    adapter, base = model.adapter, ground.recipe.base
    assert adapter is not None
    prefix = trial.wish.starts_the_cache
    name = f"{trial.slug}.{'safetensors' if prefix else 'gguf'}"

    def work(folder: Path) -> None:
        if prefix:
            export_prefix(base, [adapter], folder / name, revision=ground.recipe.revision)
        else:
            export_adapter(
                base, [adapter], "gguf", "F16", folder / name, revision=ground.recipe.revision
            )

    key = {"base": ground.inputs.base_sha256, "adapter": model.identity, "prefix": prefix}
    result = space.stage(f"beside-{trial.slug}", key, work, tools=TRAINING_TOOLS)
    return result.folder / name
