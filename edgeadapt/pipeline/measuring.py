"""The stages of a run that measure its artifacts and this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgeadapt.artifact import Artifact
from edgeadapt.bench.machine import this_machine
from edgeadapt.bench.run import bench_artifact
from edgeadapt.console import log
from edgeadapt.data.encode import Encoded
from edgeadapt.data.load import data_hash
from edgeadapt.detect.profile import detect_profile, profile_yaml
from edgeadapt.errors import InputError
from edgeadapt.export import ModelToExport
from edgeadapt.fidelity.compare import engine_identity
from edgeadapt.fidelity.evaluate import Yardstick, evaluate
from edgeadapt.fidelity.references import text_hash
from edgeadapt.files import write_json
from edgeadapt.jobs import available_threads
from edgeadapt.pipeline.inputs import Adapted, Inputs, find_task, sample_prompts
from edgeadapt.pipeline.stages import REFERENCE_TOOLS, answers_of
from edgeadapt.pipeline.workspace import StageResult, Workspace
from edgeadapt.recipe import Recipe
from edgeadapt.runtimes.registry import installed_runtimes

PROFILE = "profile.yaml"


def weights_stage(
    space: Workspace, inputs: Inputs, model: Adapted, source: ModelToExport, artifact: Artifact
) -> StageResult:
    """What quantization changed of each layer's weights."""
    from edgeadapt.converters.gguf.weight_error import weight_errors

    key = {"artifact": artifact.sha256(), "base": inputs.base_sha256, "adapter": model.identity}

    def work(folder: Path) -> None:
        found = weight_errors(artifact.files, source.source)
        write_json(folder / "weights.json", [asdict(tensor) for tensor in found])

    return space.stage(f"weights-{artifact.quantization}", key, work)


def machine_stage(space: Workspace) -> StageResult | None:
    """A profile of this machine, to predict what is measured on it; None if there can be none."""
    key = {"machine": this_machine_facts()}

    def work(folder: Path) -> None:
        text = profile_yaml(detect_profile("this-machine"))
        (folder / PROFILE).write_text(text, encoding="utf-8")

    try:
        return space.stage("machine", key, work)
    except InputError as error:
        log.warning("nothing is predicted for this machine: %s", error)
        return None


def evaluate_stage(
    space: Workspace,
    recipe: Recipe,
    inputs: Inputs,
    model: Adapted,
    artifact: Artifact,
    runtime: str,
    yardstick: Callable[[], Yardstick],
    held_out: list[Encoded],
) -> StageResult:
    """Fidelity, task metric and sample answers of an artifact on its runtime."""
    prompts = sample_prompts(recipe, inputs)
    task = find_task(recipe, inputs)
    key = {
        "artifact": artifact.sha256(),
        "base": inputs.base_sha256,
        "adapter": model.identity,
        "runtime": engine_identity(runtime),
        "held_out": text_hash(held_out),
        "prompts": prompts,
        "system": inputs.system,
        "answer_tokens": recipe.evaluate.answer_tokens,
        "task": task and [task.metric, data_hash(task.data), task.examples, task.max_tokens],
    }
    label = f"{artifact.quantization} on {runtime}"

    def work(folder: Path) -> None:
        others = installed_runtimes(artifact.format)
        figures = evaluate(artifact, runtime, yardstick(), task=task, others=others)
        answers = answers_of(
            artifact.path, prompts, recipe.evaluate.answer_tokens, label, runtime,
            system=inputs.system,
        )  # fmt: skip
        write_json(folder / "figures.json", figures)
        write_json(folder / "answers.json", answers)

    name = f"evaluate-{artifact.quantization}-{runtime}"
    return space.stage(name, key, work, tools=REFERENCE_TOOLS)


def bench_stage(
    space: Workspace, recipe: Recipe, path: Path, sha256: str, runtime: str, label: str
) -> StageResult:
    """Latency and memory of an artifact on a runtime."""
    settings = recipe.bench
    threads = settings.threads or available_threads()
    key = {
        "artifact": sha256,
        "runtime": engine_identity(runtime),
        "settings": settings.model_dump(mode="json", exclude={"reference"}),
        "threads": threads,
        "machine": this_machine_facts(),
    }

    def work(folder: Path) -> None:
        measurement = bench_artifact(
            path,
            runtime=runtime,
            threads=threads,
            prompt_tokens=settings.prompt_tokens,
            decode_tokens=settings.decode_tokens,
            repetitions=settings.repetitions,
        )
        write_json(folder / "measurement.json", measurement.model_dump(mode="json"))

    return space.stage(f"bench-{label}-{runtime}", key, work)


def this_machine_facts() -> list[Any]:
    """What figures that were measured here depend on."""
    machine = this_machine()
    return [machine.cpu, machine.available_cores, machine.memory_bytes]
