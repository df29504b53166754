"""Limits that an artifact has to keep, and the verdict on each.

The defaults let F16, Q8_0 and Q4_K_M pass and stop what is broken. They were set on the 135M model
with two adapters, a strong and a weak one. Sound files have a mean KL of up to 0.08 and keep 92% of
the adapter and more; alpha halved keeps 76%, doubled 73%, and Q4_1, the grid that this base's
weights lie on already, 9%. A layer of zeros costs a KL of 0.17.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Gates(BaseModel):
    """What an artifact has to keep to; null switches a gate off."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_kl: float | None = Field(
        0.2, gt=0, description="mean KL divergence from the merged model, in nats"
    )
    min_top1: float | None = Field(
        0.6, ge=0, le=1, description="share of tokens whose most probable one is the same"
    )
    min_retention: float | None = Field(
        0.85, le=1, description="share of the adapter's effect that is kept, the bits' loss aside"
    )
    max_excess_kl: float | None = Field(
        0.01, gt=0, description="mean KL divergence beyond 1.5 times what the same quantization "
        "costs the plain base, in nats"
    )  # fmt: skip
    max_perplexity_ratio: float | None = Field(
        1.4, gt=0, description="held-out perplexity over the merged model's"
    )
    min_task_metric: float | None = Field(
        None, description="the task metric of evaluate.task; off by default"
    )
    max_merge_ratio: float | None = Field(
        1.02, gt=0, description="held-out perplexity of the merged over the live model that QLoRA "
        "trained; judged before anything is exported"
    )  # fmt: skip
    parity: bool = Field(
        True, description="the shipped tokenizer and template give the same tokens as the original"
    )


@dataclass(frozen=True)
class Verdict:
    """One gate's judgement."""

    gate: str
    figure: float | None
    """None where a gate has no number to show."""
    limit: float | bool
    passed: bool
    note: str = ""
    """What else a person should know."""

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    def __str__(self) -> str:
        if self.figure is None:
            return f"{self.gate}: {self.note}"
        sign = "at most" if self.gate.startswith("max") else "at least"
        more = f" ({self.note})" if self.note else ""
        return f"{self.gate}: {self.figure:.4g}, expected {sign} {self.limit:.4g}{more}"


def judge(
    gates: Gates, figures: Mapping[str, Any], others: Sequence[Verdict] = ()
) -> list[Verdict]:
    """The verdict of every gate that is on and has something to judge.

    Args:
        gates: the limits.
        figures: what `evaluate` returned.
        others: verdicts that come about elsewhere, such as `parity`'s.
    """
    return [*_judge_numbers(gates, figures), *others]


def verdict_record(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Verdicts as JSON: `gates`, `failed_gates` and `passed`."""
    failed = [verdict.gate for verdict in verdicts if not verdict.passed]
    return {
        "gates": [verdict.record() for verdict in verdicts],
        "failed_gates": failed,
        "passed": not failed,
    }


def _judge_numbers(gates: Gates, figures: Mapping[str, Any]) -> Iterator[Verdict]:
    fidelity, retention, task = (figures[name] for name in ("fidelity", "retention", "task"))
    if gates.max_kl is not None:
        yield _at_most("max_kl", fidelity["mean_kl"]["value"], gates.max_kl)
    if gates.max_excess_kl is not None and (bits := figures.get("bits")):
        yield _explained(gates.max_excess_kl, bits)
    if gates.min_top1 is not None:
        yield _at_least("min_top1", fidelity["top1"]["value"], gates.min_top1)
    if gates.min_retention is not None and retention:
        yield _retained(gates.min_retention, retention)
    if gates.max_perplexity_ratio is not None:
        ratio = fidelity["perplexity_ratio"]["value"]
        yield _at_most("max_perplexity_ratio", ratio, gates.max_perplexity_ratio)
    if gates.min_task_metric is not None and task:
        yield _at_least("min_task_metric", task["value"], gates.min_task_metric, task["metric"])


def _retained(limit: float, retention: Mapping[str, Any]) -> Verdict:
    if retention["adapter"] is None:
        change = retention["adapter_kl"]["value"]
        note = (
            f"not judged: the adapter changes too little on this text (a mean KL of {change:.2g} "
            "from the base) for shares of it to be told; give held-out text of what it was "
            "trained for"
        )
        return Verdict("min_retention", None, limit, True, note)
    return _at_least("min_retention", retention["adapter"], limit, _explain(retention["effect"]))


def _explained(limit: float, bits: Mapping[str, Any]) -> Verdict:
    note = (
        f"the same quantization costs the plain base {bits['kl']['value']:.2g}: is a layer "
        "damaged, or was it merged onto another base?"
    )
    return _at_most("max_excess_kl", bits["excess_kl"]["value"], limit, note)


def _explain(effect: Mapping[str, Any]) -> str:
    """In words, which way the adapter's effect is off."""
    share = (effect["quantized_base"] or effect["float_base"])["value"]
    if share < 0.1:
        return "the adapter is not in it, or rounding erased it"
    if 0.9 < share < 1.05:
        return "the model is further off than the bits explain: was it merged onto another base?"
    if share < 1:
        return f"the adapter counts {share:.2f} times as much as it should"
    return f"the adapter counts too much, {share:.2f} times as it should"


def _at_most(gate: str, figure: float, limit: float, note: str = "") -> Verdict:
    return _verdict(gate, figure, limit, figure <= limit, note)


def _at_least(gate: str, figure: float, limit: float, note: str = "") -> Verdict:
    return _verdict(gate, figure, limit, figure >= limit, note)


def _verdict(gate: str, figure: float, limit: float, passed: bool, note: str) -> Verdict:
    return Verdict(gate, figure, limit, bool(passed), "" if passed else note)
