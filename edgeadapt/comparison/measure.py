"""A contender on its runtime: how well it answers, what it forgot, how fast it is.

Figures of answers are kept for each question, so that contenders are compared question by question.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeadapt.artifact import Artifact
from edgeadapt.bench.run import bench_artifact
from edgeadapt.comparison.ground import Ground
from edgeadapt.console import progress
from edgeadapt.data.encode import Encoded
from edgeadapt.data.load import data_hash
from edgeadapt.errors import RuntimeFailure
from edgeadapt.fidelity.compare import Engine, compare, engine_identity
from edgeadapt.fidelity.evaluate import prepare
from edgeadapt.fidelity.metrics import mean
from edgeadapt.fidelity.models import ReferenceModel, State
from edgeadapt.fidelity.references import text_hash
from edgeadapt.fidelity.retention import measure_retention
from edgeadapt.fidelity.task import Task, measure_task
from edgeadapt.files import sha256_file, write_json
from edgeadapt.jobs import Scored, available_threads, score
from edgeadapt.pipeline.measuring import this_machine_facts
from edgeadapt.pipeline.stages import REFERENCE_TOOLS
from edgeadapt.pipeline.workspace import Workspace
from edgeadapt.planner.model import ModelFacts
from edgeadapt.runtimes.registry import installed_runtimes

HELD_OUT, GENERAL, TASK = "held-out.jsonl", "general.jsonl", "task.jsonl"
"""A prompting's own versions of the questions."""
SHIPS, PROMPTED = "ships.json", "prompting.json"
"""What a device needs of a prompting beside the base, and how that came about."""
WANTED: tuple[State, ...] = ("base", "merged")


@dataclass(frozen=True)
class Subject:
    """A contender as a device runs it."""

    name: str
    """Names its stages."""
    artifact: Artifact
    facts: ModelFacts
    """Of the model in the artifact."""
    beside: Path | None = None
    """What ships besides: a LoRA, a prefix, what is put before questions."""
    adapter: Path | None = None
    """`beside`, if the runtime loads it."""
    models: dict[State, ReferenceModel] = field(default_factory=dict)
    """What torch compares it with; none where the prompt is what was changed."""
    positions: int = 0
    """Of a prefix, in the KV cache before everything."""
    questions: Path | None = None
    """Folder of the questions as a prompting puts them."""

    @property
    def runtime(self) -> str:
        """Preferred for the artifact."""
        return installed_runtimes(self.artifact.format)[0]

    def identity(self) -> list[Any]:
        """What all figures depend on."""
        beside = self.adapter and sha256_file(self.adapter)
        return [self.artifact.sha256(), beside, engine_identity(self.runtime)]


def measure(space: Workspace, ground: Ground, subject: Subject) -> dict[str, Any]:
    """The answers' figures, from a stage of their own.

    Returns:
        As JSON: `domain` and `general` (of each question the summed -log probability of its answer
        in nats, and tokens), `task` (its value for each question; None), `fidelity` (mean KL and
        retention beside torch's model; None) and `prompt` (tokens before an answer).
    """
    held_out = ground.encoded(_of(subject, HELD_OUT, ground.held_out))
    general = ground.encoded(_of(subject, GENERAL, ground.general))
    task = ground.task
    if task is not None:
        task = replace(task, data=_of(subject, TASK, task.data))
    key = {
        "subject": subject.identity(),
        "held_out": text_hash(held_out),
        "general": text_hash(general),
        "models": {state: model.identity() for state, model in subject.models.items()},
        "task": task and [task.metric, data_hash(task.data), task.examples, task.max_tokens],
    }

    def work(folder: Path) -> None:
        engine = Engine(subject.runtime, adapter=subject.adapter)
        domain, fidelity = _domain(subject, held_out, engine)
        figures = {
            "domain": domain,
            "general": _likelihoods(subject, general, engine, "general knowledge"),
            "task": task and _task(subject, task, ground, engine),
            "fidelity": fidelity,
            "prompt": _prompt(held_out),
        }
        _check_finite(subject, figures)
        write_json(folder / "figures.json", figures)

    stage = space.stage(f"measure-{subject.name}", key, work, tools=REFERENCE_TOOLS)
    figures: dict[str, Any] = stage.read("figures.json")
    return figures


def _check_finite(subject: Subject, figures: dict[str, Any]) -> None:
    """See that a model answers at all.

    Raises:
        RuntimeFailure: the likelihood of an answer is not a number.
    """
    for what in ("domain", "general"):
        if bad := [nll for nll in figures[what]["nll"] if not math.isfinite(nll)]:
            raise RuntimeFailure(
                f"{subject.name} gives {len(bad)} of {len(figures[what]['nll'])} {what} answers a "
                "likelihood that is not a number; lower the learning rate, or choose another "
                "quantization"
            )


def _of(subject: Subject, name: str, plain: Path) -> Path:
    own = subject.questions / name if subject.questions else None
    return own if own is not None and own.is_file() else plain


def _domain(
    subject: Subject, held_out: Sequence[Encoded], engine: Engine
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    if not subject.models:
        return _likelihoods(subject, held_out, engine, "held-out answers"), None
    states = [state for state in WANTED if state in subject.models]
    yardstick = prepare({state: subject.models[state] for state in states}, held_out)
    base = yardstick.references["base"] if yardstick.adapted else None
    found = compare(
        subject.artifact.path, held_out, yardstick.reference, base, engine=engine,
        title=f"held-out answers of {subject.name}",
    )  # fmt: skip
    numbers = yardstick.sequences
    sums = np.bincount(numbers, found.scores.nll, minlength=len(held_out))
    domain = {"nll": sums.tolist(), "tokens": [example.n_scored for example in held_out]}
    figures = {"mean_kl": mean(found.kl, numbers).record()}
    if yardstick.adapted:
        kept = measure_retention(yardstick.reference.scores, yardstick.plain, found, None, numbers)
        figures |= {"kl_kept": kept.kl.record(), "effect": kept.effect.record()}
    return domain, figures


def _likelihoods(
    subject: Subject, encoded: Sequence[Encoded], engine: Engine, what: str
) -> dict[str, Any]:
    sequences = [Scored(example.ids, example.scored) for example in encoded]
    with progress(f"{what} of {subject.name}", len(sequences), "answers") as advance:
        found = score(
            subject.artifact.path, sequences, adapter=engine.adapter, runtime=engine.runtime,
            on_progress=advance,
        )  # fmt: skip
    return {"nll": list(found.nll), "tokens": list(found.tokens)}


def _task(subject: Subject, task: Task, ground: Ground, engine: Engine) -> dict[str, Any]:
    result = measure_task(
        subject.artifact.path, task, ground.tokenizer(), engine=engine, label=subject.name
    )
    return result.record() | {"values": result.values.tolist()}


def _prompt(encoded: Sequence[Encoded]) -> dict[str, Any]:
    """Tokens before the answer that counts."""
    lengths = [example.scored.index(True) for example in encoded]
    return {"mean": sum(lengths) / len(lengths), "max": max(lengths)}


def bench(
    space: Workspace, ground: Ground, subject: Subject, prompt_tokens: float
) -> dict[str, Any]:
    """Latency, speed and memory on this machine, with a prompt as long as the contender's are."""
    settings, tokens = ground.recipe.bench, max(1, round(prompt_tokens))
    threads = settings.threads or available_threads()
    decode = ground.recipe.evaluate.answer_tokens
    key = {
        "subject": subject.identity(),
        "prompt": tokens,
        "decode": decode,
        "repetitions": settings.repetitions,
        "threads": threads,
        "machine": this_machine_facts(),
    }

    def work(folder: Path) -> None:
        found = bench_artifact(
            subject.artifact.path, runtime=subject.runtime, threads=threads,
            prompt_tokens=tokens, decode_tokens=decode, repetitions=settings.repetitions,
            adapter=subject.adapter,
        )  # fmt: skip
        write_json(folder / "measurement.json", found.model_dump(mode="json"))

    stage = space.stage(f"bench-{subject.name}", key, work)
    measurement: dict[str, Any] = stage.read("measurement.json")
    return measurement
