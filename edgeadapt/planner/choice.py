"""The choice among candidates, its reason, and what to change when there is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from edgeadapt.devices import DeviceProfile
from edgeadapt.errors import InputError
from edgeadapt.planner.candidates import (
    Budget,
    Candidate,
    candidates,
    context_that_fits,
    default_budget,
)
from edgeadapt.planner.model import ModelFacts
from edgeadapt.planner.quality import REFERENCE

Preference = Literal["profile", "quality", "speed", "memory"]

_SHORTEST_CONTEXT = 128
"""Fewer tokens are no conversation; not worth proposing."""


@dataclass(frozen=True)
class Choice:
    """What to export, and how to run it."""

    format: str
    quantization: str
    runtime: str
    threads: int
    context: int
    memory_gib: float
    """Weights, KV cache and the engine together; an estimate."""
    reason: str
    """For a person: why this runtime, why this quantization, how much memory it takes."""


@dataclass(frozen=True)
class Plan:
    """All candidates for a model on a device, and the one to take."""

    profile: DeviceProfile
    model: ModelFacts
    context: int
    budget: Budget
    found: tuple[Candidate, ...]
    refused: dict[str, str]
    """Format -> why it has no place for the model."""
    chosen: Candidate | None
    reason: str
    """Why that one; or, if there is none, what comes closest and what to change."""

    prefer: Preference = "profile"

    def in_order(self) -> list[Candidate]:
        """Candidates that fit the memory, as they should be tried: the chosen one first.

        Those that should miss a budget come last, the fastest first: a prediction may be wrong.
        """
        fitting = [candidate for candidate in self.found if candidate.fits]
        usable = [candidate for candidate in fitting if not candidate.missed]
        slow = [candidate for candidate in fitting if candidate.missed]
        return [
            *sorted(usable, key=lambda c: (bool(c.unsure), _rank(c, self.prefer))),
            *sorted(slow, key=lambda c: -c.decode.median),
        ]

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "device": self.profile.name,
            "context": self.context,
            "parameters": self.model.parameters,
            "active_parameters": self.model.active,
            "budget": {
                "memory_bytes": round(self.budget.memory_gib * 2**30),
                "min_decode_tps": self.budget.min_decode_tps,
                "max_ttft_s": self.budget.max_ttft_s,
            },
            "interval": 0.8,
            "quality_reference": REFERENCE,
            "candidates": [candidate.record() for candidate in self.found],
            "refused": self.refused,
            "choice": None if self.chosen is None else self.chosen.record(),
            "reason": self.reason,
        }


def make_plan(
    profile: DeviceProfile,
    model: ModelFacts,
    *,
    context: int | None = None,
    budget: Budget | None = None,
    prefer: Preference = "profile",
) -> Plan:
    """Weigh every runtime and quantization of a profile for a model.

    Of those that fit the memory, the ones that keep every budget even at the bad end of their
    intervals come first, then those that may keep it; among equals `prefer` decides.

    Args:
        profile: the device.
        model: what is to run there.
        context: tokens of KV cache; the profile's default if None.
        budget: what to keep to; the profile's if None.
        prefer: the profile's order, or best quality, speed or memory first.

    Raises:
        InputError: the profile names a quantization whose size is not known, or the model was not
            made for so long a context.
    """
    tokens = int(profile.context.value) if context is None else context
    if context is None and model.max_context is not None:
        tokens = min(tokens, model.max_context)
    if model.max_context is not None and tokens > model.max_context:
        raise InputError(
            f"the model was made for {model.max_context} tokens, and --context asks for {tokens}"
        )
    limits = budget or default_budget(profile)
    found, refused = candidates(profile, model, tokens, limits)
    usable = [candidate for candidate in found if candidate.fits and not candidate.missed]
    chosen = min(usable, key=lambda c: (bool(c.unsure), _rank(c, prefer)), default=None)
    if chosen is not None:
        reason = _reason(profile, limits, chosen, found, prefer)
    else:
        reason = _nothing(profile, limits, found, refused, tokens)
    return Plan(profile, model, tokens, limits, tuple(found), refused, chosen, reason, prefer)


def choose(
    profile: DeviceProfile,
    model: ModelFacts,
    *,
    context: int | None = None,
) -> Choice:
    """The candidate to export for a device, its speed being no reason to refuse.

    Raises:
        InputError: nothing fits the memory; says what comes closest.
    """
    memory_only = Budget(default_budget(profile).memory_gib)
    plan = make_plan(profile, model, context=context)
    if plan.chosen is None:  # too slow is for the user to judge; too large is not
        plan = make_plan(profile, model, context=context, budget=memory_only)
    if plan.chosen is None:
        raise InputError(plan.reason)
    taken = plan.chosen
    return Choice(
        format=taken.format,
        quantization=taken.quantization,
        runtime=taken.runtime.name,
        threads=taken.threads,
        context=plan.context,
        memory_gib=round(taken.memory.gib, 3),
        reason=plan.reason,
    )


def _rank(candidate: Candidate, prefer: Preference) -> float:
    """What `min` goes by; a constant keeps the profile's order."""
    if prefer == "quality":
        return candidate.loss.middle if candidate.loss else 1.0
    if prefer == "speed":
        return -candidate.decode.median
    return candidate.memory.total if prefer == "memory" else 0.0


_PREFERENCE = {
    "profile": "the first of the profile's order",
    "quality": "the least loss of quality",
    "speed": "the fastest",
    "memory": "the smallest",
}


def _reason(
    profile: DeviceProfile,
    budget: Budget,
    taken: Candidate,
    found: list[Candidate],
    prefer: Preference,
) -> str:
    passed = [c for c in found[: found.index(taken)] if not c.fits]
    slow = [c for c in found[: found.index(taken)] if c.fits and c.missed]
    notes = [f"{', '.join(map(str, passed))} would not fit"] if passed else []
    notes += [f"{', '.join(map(str, slow))} would be too slow"] if slow else []
    aside = f" ({'; '.join(notes)})" if notes else ""
    unsure = _unsure(budget, taken)
    return (
        f"{taken} on {taken.runtime.name} for {profile.title}{aside}: {_PREFERENCE[prefer]} that "
        f"fits. {taken.runtime.name}: {taken.runtime.reason}. {taken.quantization}: {taken.why}. "
        f"Takes about {taken.memory.gib:.2f} of the {budget.memory_gib:.1f} GiB that a model may "
        f"have there, and should decode {taken.decode} tokens a second{unsure}."
        f"{_better(taken, found)}"
    )


def _better(taken: Candidate, found: list[Candidate]) -> str:
    """A word on a candidate that keeps every budget as surely and loses much less."""
    usable = [c for c in found if c.fits and not c.missed and not c.unsure and c.loss]
    best = min(usable, key=lambda c: _rank(c, "quality"), default=None)
    if best is None or taken.loss is None or best.loss is None:
        return ""
    if best.quantization == taken.quantization or best.loss.high > taken.loss.low:
        return ""
    return (
        f" {best} keeps the budgets too and should lose less ({best.loss} of perplexity, not "
        f"{taken.loss}): `edgeadapt plan --prefer quality` takes it."
    )


def _unsure(budget: Budget, taken: Candidate) -> str:
    if "min_decode_tps" in taken.unsure:
        return f", which may miss the {budget.min_decode_tps:g} asked for: measure it there"
    if "max_ttft" in taken.unsure:
        return f"; its first token may take longer than the {budget.max_ttft_s:g} s asked for"
    return ""


def _nothing(
    profile: DeviceProfile,
    budget: Budget,
    found: list[Candidate],
    refused: dict[str, str],
    tokens: int,
) -> str:
    if not found:
        why = "; ".join(f"{format}: {text}" for format, text in refused.items())
        return f"no format carries this model to {profile.title}: {why}"
    fitting = [candidate for candidate in found if candidate.fits]
    if fitting:
        return _too_slow(profile, budget, fitting)
    closest = min(found, key=lambda candidate: candidate.memory.total)
    room = context_that_fits(closest, tokens, budget)
    if room >= _SHORTEST_CONTEXT:
        advice = f"it fits with --context {room} or less"
    else:
        advice = "choose a smaller base or a device with more memory"
    return (
        f"this model does not fit {profile.title}: {closest} comes closest and needs "
        f"{closest.memory.gib:.2f} GiB with a context of {tokens} tokens, of "
        f"{budget.memory_gib:.2f} GiB that a model may have there; {advice}"
    )


def _too_slow(profile: DeviceProfile, budget: Budget, fitting: list[Candidate]) -> str:
    closest = max(fitting, key=lambda candidate: candidate.decode.median)
    if "min_decode_tps" in closest.missed:
        said = f"should decode {closest.decode} tokens a second, of {budget.min_decode_tps:g}"
        advice = "choose a smaller base, fewer bits, or a lower --min-decode-tps"
    else:
        said = (
            f"should take {closest.ttft_low_s:.1f}-{closest.ttft_high_s:.1f} s to the first "
            f"token, of {budget.max_ttft_s:g} s"
        )
        advice = "choose a smaller base, or a longer --max-ttft"
    return (
        f"this model fits {profile.title} and is too slow there: {closest} comes closest and "
        f"{said} asked for; {advice}"
    )
