"""The stages of a run up to its artifacts. Each leaves its figures in JSON files in its folder."""

from __future__ import annotations

import functools
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeadapt.adapters.spec import read_spec
from edgeadapt.artifact import Artifact, open_artifact
from edgeadapt.chat_template import Message
from edgeadapt.console import progress
from edgeadapt.converters.onnx.options import OnnxOptions
from edgeadapt.data.encode import Encoded
from edgeadapt.data.load import data_hash
from edgeadapt.export import ModelToExport, export
from edgeadapt.fidelity.evaluate import Yardstick, prepare
from edgeadapt.fidelity.merge_base import MergeChoice, MergeSettings, choose_merge_base
from edgeadapt.fidelity.metrics import Float64Array
from edgeadapt.fidelity.models import reference_models
from edgeadapt.fidelity.parity import ParityGate
from edgeadapt.fidelity.references import text_hash
from edgeadapt.files import sha256_json, write_json
from edgeadapt.jobs import sample
from edgeadapt.pipeline.inputs import (
    Adapted,
    Inputs,
    adapted,
    find_task,
    sample_prompts,
)
from edgeadapt.pipeline.workspace import StageResult, Workspace
from edgeadapt.recipe import Recipe

TRAINING_TOOLS = ("torch", "transformers", "peft", "trl", "bitsandbytes")
PARITY = "parity.json"
ALLOCATION = "allocation.json"
REFERENCE_TOOLS = ("torch", "transformers")
EXPORT_TOOLS = {
    "gguf": ("gguf", "llama-cpp-python"),
    "onnx": ("onnx", "onnxruntime-genai", "onnxruntime", "onnx-ir", "torch", "transformers"),
}


def train_stage(space: Workspace, recipe: Recipe, inputs: Inputs) -> tuple[Adapted, StageResult]:
    """Train the adapter."""
    from edgeadapt.training.train import train

    settings, data = recipe.train, inputs.train_data
    assert settings is not None and data is not None
    key = {
        "base": inputs.base_sha256,
        "data": data_hash(data),
        "held_out": data_hash(inputs.held_out) if inputs.held_out else None,
        "settings": settings.model_dump(mode="json", exclude={"save_every_s"}),
    }

    def work(folder: Path) -> None:
        out = folder / "adapter"
        if not out.exists():  # else it was finished just before an interruption
            train(
                inputs.base, data, inputs.held_out, settings, out,
                base_spec=recipe.base, work=folder / "work",
            )  # fmt: skip
        shutil.rmtree(folder / "work", ignore_errors=True)

    result = space.stage("train", key, work, tools=TRAINING_TOOLS, reads_first=True)
    return adapted(result.folder / "adapter"), result


def merge_stage(
    space: Workspace, recipe: Recipe, inputs: Inputs, model: Adapted, held_out: list[Encoded]
) -> tuple[Adapted, StageResult]:
    """Choose what the adapter is merged onto.

    Raises:
        GateFailure: the merged model is worse than the live one that was trained.
    """
    adapter = model.adapter
    assert adapter is not None
    task = find_task(recipe, inputs)
    settings = MergeSettings(recipe.merge_onto, recipe.trained_on, recipe.gates.max_merge_ratio)
    key = {
        "base": inputs.base_sha256,
        "adapter": model.identity,
        "held_out": text_hash(held_out),
        "settings": [settings.onto, settings.trained_on, settings.max_ratio],
        "task": recipe.evaluate.task and recipe.evaluate.task.model_dump(mode="json"),
        "task_data": data_hash(task.data) if task else None,
    }

    def work(folder: Path) -> None:
        choice = choose_merge_base(inputs.base, [read_spec(adapter)], settings, held_out, task)
        write_json(folder / "merge.json", choice.document())

    result = space.stage("merge", key, work, tools=TRAINING_TOOLS)
    choice = MergeChoice.from_document(result.read("merge.json"))
    choice.check()
    identity = model.identity
    if choice.onto == "quantized":  # how training held the base shapes the merge too
        record = read_spec(adapter).record
        held = [record.get("quantization"), record.get("held"), recipe.trained_on]
        identity = sha256_json([identity, choice.onto, held])
    return replace(model, identity=identity, merge=choice), result


def prepare_yardstick(
    inputs: Inputs, model: Adapted, held_out: list[Encoded], trained_on: str | None = None
) -> Callable[[], Yardstick]:
    """What artifacts are measured against; computed when it is first asked for."""

    @functools.cache
    def yardstick() -> Yardstick:
        adapters = () if model.adapter is None else (model.adapter,)
        models = reference_models(
            inputs.base, adapters, trained=model.model, onto=model.onto, trained_on=trained_on
        )
        return prepare(models, held_out)

    return yardstick


def reference_stage(
    space: Workspace,
    recipe: Recipe,
    inputs: Inputs,
    model: Adapted,
    held_out: list[Encoded],
    yardstick: Callable[[], Yardstick],
) -> StageResult:
    """Score the plain base and the merged model in torch, float32, and sample the base."""
    prompts = sample_prompts(recipe, inputs)
    key = {
        "base": inputs.base_sha256,
        "adapter": model.identity,
        "held_out": text_hash(held_out),
        "prompts": prompts,
        "system": inputs.system,
        "answer_tokens": recipe.evaluate.answer_tokens,
    }

    def work(folder: Path) -> None:
        figures = {
            state: _perplexity(reference.scores.nll, held_out)
            for state, reference in yardstick().references.items()
        }
        answers = answers_of(
            inputs.base, prompts, recipe.evaluate.answer_tokens, "base (torch)",
            system=inputs.system,
        )  # fmt: skip
        write_json(folder / "perplexity.json", figures)
        write_json(folder / "answers.json", answers)

    return space.stage("reference", key, work, tools=REFERENCE_TOOLS)


def export_stage(
    space: Workspace,
    recipe: Recipe,
    inputs: Inputs,
    model: Adapted,
    source: ModelToExport,
    format: str,
    quantization: str,
    *,
    max_size: str | None = None,
    onnx: OnnxOptions | None = None,
) -> tuple[Artifact, StageResult]:
    """Write one artifact, if its text is the original's.

    With `max_size` its types are chosen for it.

    Raises:
        GateFailure: the text is not.
    """
    name = f"{recipe.name}-{quantization}"
    name = f"{name}.gguf" if format == "gguf" else name
    key: dict[str, Any] = {
        "base": inputs.base_sha256,
        "adapter": model.identity,
        "format": format,
        "quantization": quantization,
        "name": name,
        "parity": recipe.gates.parity,
    }
    if onnx is not None:
        key["onnx"] = [onnx.preset, dict(onnx.session)]
    if max_size is not None and inputs.train_data is not None:
        key["calibration"] = data_hash(inputs.train_data)

    def work(folder: Path) -> None:
        path = folder / name
        if path.exists():  # published whole just before an interruption
            return
        gate = ParityGate(source.folder)

        def check(made: Artifact) -> None:
            if recipe.gates.parity:
                gate(made)
            write_json(folder / PARITY, gate.report.record())

        if max_size is None or inputs.train_data is None:
            export(source, format, quantization, path, check=check, onnx=onnx)
            return
        from edgeadapt.allocation.allocate import allocate

        chosen = allocate(source, inputs.train_data, max_size)
        write_json(folder / ALLOCATION, chosen.document())  # first: the artifact says it is done
        export(source, format, chosen.mix, path, options=chosen.options(), check=check)

    tools = EXPORT_TOOLS.get(format, ())
    if max_size is not None:
        tools += REFERENCE_TOOLS
    result = space.stage(f"export-{format}-{quantization}", key, work, tools=tools)
    return open_artifact(result.folder / name), result


def _perplexity(nll: Float64Array, held_out: list[Encoded]) -> dict[str, Any]:
    return {
        "perplexity": math.exp(min(float(nll.mean()), 700.0)),
        "nll_sum": float(nll.sum()),
        "tokens": len(nll),
        "examples": len(held_out),
    }


def answers_of(
    path: Path,
    prompts: list[str],
    max_tokens: int,
    label: str,
    runtime: str | None = None,
    *,
    system: str | None,
) -> list[dict[str, Any]]:
    """What a model says to prompts, under a system prompt or none, in a child process, as JSON."""
    if not prompts:
        return []
    before: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    conversations = [[*before, _user(prompt)] for prompt in prompts]
    with progress(f"sample answers of {label}", len(prompts), "answers") as advance:
        answers = sample(
            path, conversations, max_tokens=max_tokens, runtime=runtime, on_progress=advance
        )
    return [
        {"prompt": prompt, "answer": answer.text, "finished": answer.finished}
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def _user(prompt: str) -> Message:
    return {"role": "user", "content": prompt}
