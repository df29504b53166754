"""All figures of an artifact against what it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from edgeadapt.artifact import Artifact
from edgeadapt.data.encode import Encoded
from edgeadapt.fidelity.bits import bits_loss
from edgeadapt.fidelity.compare import Engine, compare
from edgeadapt.fidelity.metrics import (
    IntArray,
    TokenDivergence,
    diverge_rows,
    exponential,
    mean,
    summarize,
)
from edgeadapt.fidelity.models import ReferenceModel, State, texts_folder
from edgeadapt.fidelity.quantized_base import FLOAT, quantized_base, stored_as
from edgeadapt.fidelity.references import Reference, find_references, sequence_numbers, targets
from edgeadapt.fidelity.retention import measure_retention
from edgeadapt.fidelity.task import Task, measure_task
from edgeadapt.fidelity.text import within
from edgeadapt.files import atomic_file
from edgeadapt.safetensors_io import SafetensorsSource
from edgeadapt.tokenizer import ModelTokenizer


@dataclass(frozen=True)
class Yardstick:
    """What artifacts of one model are measured against: held-out text, and what torch says of it.

    Artifacts are compared with the merged model, or with the base where there is no adapter.
    """

    base_folder: Path
    texts: Path
    """Folder of the tokenizer and chat template that ship."""
    encoded: Sequence[Encoded]
    plain_encoded: Sequence[Encoded]
    """The same text as the plain base reads it, which lacks the tokens that an adapter added."""
    references: dict[State, Reference]

    @property
    def reference(self) -> Reference:
        """What an artifact means to be."""
        return self.references.get("merged") or self.references["base"]

    @property
    def adapted(self) -> bool:
        """Whether there is an adapter whose effect can be measured."""
        return "merged" in self.references

    @cached_property
    def sequences(self) -> IntArray:
        """Which sequence each scored token belongs to."""
        return sequence_numbers(self.encoded)

    @cached_property
    def plain(self) -> TokenDivergence:
        """The base compared with the merged model; kept in the cache, beside the merged model's."""
        merged, base = self.references["merged"], self.references["base"]
        stored = merged.folder / f"kl-of-{base.folder.name}.npy"
        if not stored.is_file():
            kl = diverge_rows(merged.log_probs, base.log_probs, targets(self.plain_encoded)).kl
            with atomic_file(stored, overwrite=True) as partial, partial.open("wb") as file:
                np.save(file, kl)
        return TokenDivergence(base.scores, np.load(stored))

    def record(self) -> dict[str, Any]:
        """As JSON: the references' perplexities, and how much text they are of."""
        perplexities = {
            state: exponential(mean(reference.scores.nll, self.sequences)).record()
            for state, reference in self.references.items()
        }
        return {
            "perplexity": perplexities,
            "sequences": len(self.encoded),
            "tokens": len(self.sequences),
        }


def prepare(
    models: dict[State, ReferenceModel],
    encoded: Sequence[Encoded],
    *,
    states: Sequence[State] = ("base", "merged"),
    threads: int | None = None,
) -> Yardstick:
    """Find or compute the references.

    Args:
        models: see `reference_models`.
        encoded: held-out text.
        states: which of the models to take, where they exist.
        threads: of torch.

    Raises:
        InputError: a model cannot be used, or the disk has no room.
        RuntimeFailure: torch failed.
    """
    base = models["base"].base
    plain = within(encoded, SafetensorsSource(base).config["vocab_size"])
    wanted = {state: models[state] for state in states if state in models}
    references: dict[State, Reference] = {}
    if plain is not encoded and "base" in wanted:
        only: dict[State, ReferenceModel] = {"base": wanted.pop("base")}
        references |= find_references(only, plain, threads=threads)
    references |= find_references(wanted, encoded, threads=threads)
    return Yardstick(base, texts_folder(models), encoded, plain, references)


def evaluate(
    artifact: Artifact,
    runtime: str,
    yardstick: Yardstick,
    *,
    threads: int | None = None,
    timeout_s: float | None = None,
    task: Task | None = None,
    with_quantized_base: bool = True,
    others: Sequence[str] = (),
    adapter: Path | None = None,
) -> dict[str, Any]:
    """All figures of an artifact on a runtime: `fidelity`, `bits`, `retention` and `task`.

    As JSON.

    Args:
        artifact: what to measure.
        runtime: what to run it on.
        yardstick: what to measure it against.
        threads: by default the cores that there are.
        timeout_s: give up a child process after so many seconds.
        task: the user's own measure, if there is one.
        with_quantized_base: also quantize and run the plain base, to tell what the bits cost.
        others: runtimes that the artifact will be measured on later, to save work then.
        adapter: what runs beside the artifact, in the engine's own format.

    Raises:
        InputError: the artifact cannot be opened.
        RuntimeFailure: the engine failed.
    """
    engine = Engine(runtime, threads, timeout_s, adapter)
    beside = f" and {adapter.name}" if adapter else ""
    label = f"{artifact.quantization}{beside} on {runtime}"
    base = yardstick.references["base"] if yardstick.adapted else None
    divergence = compare(
        artifact.path, yardstick.encoded, yardstick.reference, base, engine=engine, title=label
    )
    plain, lossless = None, stored_as(artifact) in FLOAT
    if with_quantized_base:
        plain = quantized_base(
            yardstick.base_folder, artifact, yardstick.plain_encoded, yardstick.reference, base,
            engine=engine, others=others,
        )  # fmt: skip
    bits = bits_loss(divergence, plain, yardstick.sequences, lossless=lossless)
    retention = None
    if base is not None:
        retention = measure_retention(
            yardstick.reference.scores, yardstick.plain, divergence, plain, yardstick.sequences,
            lossless=lossless,
        )  # fmt: skip
    result = None
    if task is not None:
        tokenizer = ModelTokenizer.from_folder(yardstick.texts)
        result = measure_task(artifact.path, task, tokenizer, engine=engine, label=label)
    fidelity = summarize(yardstick.reference.scores, divergence, yardstick.sequences)
    return {
        "runtime": runtime,
        "fidelity": fidelity.record(),
        "bits": bits and bits.record(),
        "retention": retention and retention.record(),
        "task": result and result.record(),
    }
