"""Which weights to merge an adapter of QLoRA into: the original ones, or those it was trained on.

Merged into the dequantized base, the model equals the one that was trained. Merged into the
original weights it has fewer rounding errors, which the adapter may have learned to make up for.
Which is better differs from model to model, so both are measured beside the live model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgeadapt.adapters import AdapterSpec, parse_adapters, read_spec
from edgeadapt.adapters.held import held_base, tells
from edgeadapt.adapters.spec import system_in
from edgeadapt.base_model import resolve_base
from edgeadapt.console import log
from edgeadapt.data.encode import Encoded
from edgeadapt.errors import GateFailure, InputError, MissingExtraError
from edgeadapt.export import MergeBase, ModelToExport, open_model
from edgeadapt.fidelity.compare import Engine
from edgeadapt.fidelity.gates import Verdict, verdict_record
from edgeadapt.fidelity.merge_figures import because, better_by_task, check_live, compare_merges
from edgeadapt.fidelity.metrics import mean
from edgeadapt.fidelity.models import live_model
from edgeadapt.fidelity.references import find_references
from edgeadapt.fidelity.task import Task, measure_task
from edgeadapt.fidelity.text import held_out_text
from edgeadapt.leftovers import scratch
from edgeadapt.merge import merge_to_folder
from edgeadapt.tokenizer import ModelTokenizer

MergeWish = Literal["auto", "original", "quantized"]
GATE = "max_merge_ratio"

DEFAULT_RATIO = 1.02


@dataclass(frozen=True)
class MergeSettings:
    """What the user wants of a merge."""

    onto: MergeWish = "auto"
    trained_on: str | None = None
    """How training held the base, where the adapter's record does not say."""
    max_ratio: float | None = DEFAULT_RATIO
    """Held-out perplexity of the merged model over the live model's; None for no limit."""
    threads: int | None = None


@dataclass(frozen=True)
class MergeChoice:
    """The weights that were chosen, and why."""

    onto: MergeBase
    asked: MergeWish
    reason: str
    figures: dict[str, Any] | None = None
    """Of the live model and of each merge: perplexity, ratio to the live model's, KL to it."""
    verdict: Verdict | None = None

    def record(self) -> dict[str, Any]:
        """As JSON, for lineage and reports."""
        return {
            "onto": self.onto,
            "asked": self.asked,
            "reason": self.reason,
            "measured": self.figures,
        }

    def document(self) -> dict[str, Any]:
        """`record` and the verdict, as JSON, to be read by `from_document`."""
        return self.record() | {"verdict": self.verdict and self.verdict.record()}

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> MergeChoice:
        """What `document` gave."""
        verdict = document["verdict"]
        return cls(
            document["onto"],
            document["asked"],
            document["reason"],
            document["measured"],
            verdict and Verdict(**verdict),
        )

    def check(self) -> None:
        """Stop where the merged model is worse than the live one.

        Raises:
            GateFailure: it is, beyond the limit.
        """
        if self.verdict is not None and not self.verdict.passed:
            other = "original" if self.onto == "quantized" else "quantized"
            # Where both were measured, the other one is worse still.
            turn = "" if self.asked == "auto" else f"give --merge-onto {other}, "
            raise GateFailure(
                f"merged onto the {self.onto} base, the model is worse than the live one that was "
                f"trained: {self.verdict}; {turn}check that the base is the adapter's, or allow "
                "more with --max-merge-ratio",
                verdict_record([self.verdict]) | {"merge": self.record()},
            )


def open_measured(
    base: str,
    adapter: Sequence[str | Path],
    settings: MergeSettings,
    *,
    held_out: Path | None = None,
    examples: int | None = None,
    revision: str | None = None,
    any_base: bool = False,
) -> ModelToExport:
    """`open_model`, merged onto the weights that are better, its lineage saying why.

    Args:
        base: as `open_model`.
        adapter: as `open_model`; without one there is nothing to choose.
        settings: what is wanted.
        held_out: a dataset, or a .txt file, to measure on.
        examples: most examples of it to take.
        revision: as `open_model`.
        any_base: as `open_model`.

    Raises:
        GateFailure: the merged model is worse than the live one.
        InputError: as `open_model`.
    """
    model = open_model(base, adapter, revision=revision, any_base=any_base)
    choices = parse_adapters(adapter)
    if not choices:
        return model
    specs = [read_spec(choice.path) for choice in choices]
    encoded = None
    weighted = any(choice.weight not in (None, 1.0) for choice in choices)
    if weighted and held_out is not None:
        log.warning("nothing was trained with a weight, so there is no live model to measure")
    elif held_out is not None:
        encoded = held_out_text(
            held_out, ModelTokenizer.from_folder(model.folder), limit=examples,
            system=system_in(specs[0].record),
        )  # fmt: skip
    choice = choose_merge_base(resolve_base(base, revision=revision), specs, settings, encoded)
    choice.check()
    if choice.onto != "original":
        model = open_model(
            base,
            adapter,
            revision=revision,
            any_base=any_base,
            merge_onto=choice.onto,
            trained_on=settings.trained_on,
        )
    model.lineage["merge"] |= choice.record()
    return model


def choose_merge_base(
    base: Path,
    specs: Sequence[AdapterSpec],
    settings: MergeSettings,
    held_out: Sequence[Encoded] | None,
    task: Task | None = None,
) -> MergeChoice:
    """Decide, by measuring where that can be done.

    Args:
        base: Hugging Face folder of the base.
        specs: the adapters to merge, at least one.
        settings: what is wanted.
        held_out: text to measure on, if there is any.
        task: the user's own measure, which then decides where it can tell the two apart.

    Raises:
        InputError: `quantized` is asked for, and there is no quantized base.
        MissingExtraError: `original` or `quantized` is asked for with text to measure on, and a
            library for the live model is missing.
    """
    asked = settings.onto
    obstacle = _obstacle(specs, settings)
    if obstacle is None and held_out is None:
        obstacle = "there is no held-out data; give --held-out"
    if obstacle is None:
        try:
            return _measured(base, specs[0].path, settings, held_out or (), task)
        except MissingExtraError as error:
            if asked != "auto":
                raise
            obstacle = str(error)
    onto: MergeBase = "original" if asked == "auto" else asked
    reason = f"not measured: {obstacle}"
    if asked == "auto":
        log.info("merging onto the original base; %s", reason)
    return MergeChoice(onto, asked, reason)


def _obstacle(specs: Sequence[AdapterSpec], settings: MergeSettings) -> str | None:
    """Why nothing can, or need, be measured.

    Raises:
        InputError: `quantized` is asked for, and there is no quantized base.
    """
    if settings.onto != "quantized" and settings.trained_on is None:
        unknown = [spec.path.name for spec in specs if not tells(spec)]
        if unknown:
            return (
                f"the adapter {unknown[0]} has no record of how its base was held in training; "
                "--trained-on says it"
            )
    if len(specs) > 1 and settings.onto != "quantized":
        return "several adapters were not trained together, so there is no live model"
    if held_base(specs, settings.trained_on) is None:
        if settings.onto == "quantized":
            raise InputError(
                f"the adapter {specs[0].path} was trained on a base in floating point, so there "
                "is no quantized base to merge onto; give --merge-onto original"
            )
        return "the adapter was trained on a base in floating point"
    if len(specs) > 1:
        return "several adapters were not trained together, so there is no live model"
    return None


def _measured(
    base: Path,
    adapter: Path,
    settings: MergeSettings,
    held_out: Sequence[Encoded],
    task: Task | None,
) -> MergeChoice:
    wanted: tuple[MergeBase, ...] = (
        ("original", "quantized") if settings.onto == "auto" else (settings.onto,)
    )
    live = live_model(base, adapter, settings.trained_on)
    models = {"live": live} | {onto: replace(live, state="merged", onto=onto) for onto in wanted}
    references = find_references(models, held_out, threads=settings.threads)
    figures = compare_merges(references, held_out)
    check_live(figures)
    best = min(wanted, key=lambda onto: figures[onto]["perplexity"]["value"])
    told = None
    if task is not None:
        figures |= _task_figures(base, adapter, settings, wanted, task, figures)
        told = better_by_task(figures)
    best = told or best
    ratio = figures[best]["ratio_to_live"]["value"]
    verdict = None
    if settings.max_ratio is not None:
        verdict = Verdict(GATE, ratio, settings.max_ratio, ratio <= settings.max_ratio)
    reason = "as asked" if settings.onto != "auto" else because(best, figures, by_task=bool(told))
    log.info("merging onto the %s base: %s", best, reason)
    return MergeChoice(best, settings.onto, reason, figures, verdict)


def _task_figures(
    base: Path,
    adapter: Path,
    settings: MergeSettings,
    wanted: Sequence[MergeBase],
    task: Task,
    figures: Mapping[str, Any],
) -> dict[str, Any]:
    """The task of each merge, in torch, beside its other figures; and their paired difference."""
    found: dict[str, Any] = {}
    values = {}
    for onto in wanted:
        model = open_model(
            str(base), adapter, any_base=True, merge_onto=onto, trained_on=settings.trained_on
        )
        with scratch("merge") as folder:
            merged = merge_to_folder(model, folder / "merged").path
            result = measure_task(
                merged, task, ModelTokenizer.from_folder(merged),
                engine=Engine("torch", settings.threads), label=f"the merge onto the {onto} base",
            )  # fmt: skip
        found[onto] = figures[onto] | {"task": result.record()}
        values[onto] = result.values
    if len(values) == 2:
        apart = values["original"] - values["quantized"]
        difference = mean(apart, np.arange(len(apart))).record()
        found["task_original_minus_quantized"] = difference
    return found
