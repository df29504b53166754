"""Figures of merged models beside the live one that was trained, and what they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeadapt.data.encode import Encoded
from edgeadapt.errors import RuntimeFailure
from edgeadapt.export import MergeBase
from edgeadapt.fidelity.metrics import diverge_rows, exponential, mean
from edgeadapt.fidelity.references import Reference, sequence_numbers, targets

LIVE_KL = 0.05
"""Most divergence, in nats, of the live model from itself merged; bfloat16's rounding is 5e-4."""

LIVE_RATIO = 0.5
"""Least perplexity of a merge onto the original base over the live model's."""


def better_by_task(figures: Mapping[str, Any]) -> MergeBase | None:
    """The merge that is better at the task by more than two standard errors; None if neither is."""
    apart = figures.get("task_original_minus_quantized")
    if apart is None or apart["value"] is None or apart["standard_error"] is None:
        return None
    if abs(apart["value"]) <= 2 * apart["standard_error"]:
        return None
    return "original" if apart["value"] > 0 else "quantized"


def compare_merges(references: dict[str, Reference], encoded: Sequence[Encoded]) -> dict[str, Any]:
    """Figures of merged models beside the live one, as JSON.

    Args:
        references: `live`, and merges by what they are merged onto.
        encoded: the text that all are of.

    Returns:
        For each its `perplexity`; for merges `ratio_to_live` and `mean_kl`, D(live || merge) in
        nats; and, of two merges, `original_minus_quantized`: the paired difference of the mean
        negative log likelihoods, in nats. All with standard errors over sequences.
    """
    sequences, wanted = sequence_numbers(encoded), targets(encoded)
    live = references["live"]
    figures: dict[str, Any] = {"tokens": len(wanted), "examples": len(encoded)}
    for name, reference in references.items():
        nll = reference.scores.nll
        figures[name] = {"perplexity": exponential(mean(nll, sequences)).record()}
        if name == "live":
            continue
        kl = diverge_rows(live.log_probs, reference.log_probs, wanted).kl
        ratio = exponential(mean(nll - live.scores.nll, sequences))
        figures[name] |= {
            "ratio_to_live": ratio.record(),
            "mean_kl": mean(kl, sequences).record(),
        }
    if {"original", "quantized"} <= references.keys():
        apart = references["original"].scores.nll - references["quantized"].scores.nll
        figures["original_minus_quantized"] = mean(apart, sequences).record()
    return figures


def check_live(figures: Mapping[str, Any]) -> None:
    """See that the live model was computed right: the measure of everything that follows.

    Merged onto the quantized weights it is the same model, but for rounding. Merged onto the
    original ones it is another, which may well be better, but never by far.

    Raises:
        RuntimeFailure: it was not.
    """
    live = figures["live"]["perplexity"]["value"]
    for onto in ("quantized", "original"):
        if onto not in figures:
            continue
        merged = figures[onto]
        strange = (
            merged["mean_kl"]["value"] > LIVE_KL
            if onto == "quantized"
            else merged["ratio_to_live"]["value"] < LIVE_RATIO
        )
        if strange:
            raise RuntimeFailure(
                f"run live, the adapter has a held-out perplexity of {live:.4g}, and merged onto "
                f"the {onto} base one of {merged['perplexity']['value']:.4g}: bitsandbytes "
                "computes wrongly on this machine, or the base is not the adapter's; check --base, "
                "and try another version of bitsandbytes"
            )


def because(best: str, figures: dict[str, Any], *, by_task: bool = False) -> str:
    """In words, why the better merge is better."""
    other = "quantized" if best == "original" else "original"
    if by_task:
        apart = figures["task_original_minus_quantized"]
        return (
            f"{figures[best]['task']['metric']} {figures[best]['task']['value']:.3f} against "
            f"{figures[other]['task']['value']:.3f} on the {other} one (paired difference "
            f"{abs(apart['value']):.3f} ± {apart['standard_error']:.3f})"
        )
    apart = figures["original_minus_quantized"]
    error = apart["standard_error"]
    told = f" ± {error:.3f}" if error is not None else ""
    return (
        f"held-out perplexity {figures[best]['perplexity']['value']:.2f} against "
        f"{figures[other]['perplexity']['value']:.2f} on the {other} one (live "
        f"{figures['live']['perplexity']['value']:.2f}; the two differ by "
        f"{abs(apart['value']):.3f}{told} nats a token)"
    )
