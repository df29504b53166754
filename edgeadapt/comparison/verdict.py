"""Which contender to take on a device, why, and when another one would be better."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from edgeadapt.comparison.figures import (
    Contender,
    common_base,
    forgetting,
    lead,
    plain_of,
)
from edgeadapt.comparison.recipe import ComparisonRecipe
from edgeadapt.comparison.statistics import Interval
from edgeadapt.devices import DeviceProfile
from edgeadapt.planner.foretell import foretell

_GIB = 2**30
_ALIKE = 1.05
"""Times and sizes within 5% of the least count as equal: predictions are no better."""
_RUNTIME, _FORMAT = "llama-cpp", "gguf"


@dataclass(frozen=True)
class OnDevice:
    """A contender on a device, as predicted."""

    contender: Contender
    told: dict[str, Any]
    answer_tokens: int
    fits: bool

    def seconds(self, end: str) -> float:
        """From the question to the end of a usual answer, at an end of the interval.

        Args:
            end: `low` for a device as slow as the interval allows, `median`, or `high`.
        """
        prefill = self.contender.prompt_tokens / self.told["prefill_tps"][end]
        return float(prefill + self.answer_tokens / self.told["decode_tps"][end])

    def ttft(self, end: str) -> float:
        """Seconds to the first token, likewise."""
        return float(self.contender.prompt_tokens / self.told["prefill_tps"][end])

    def record(self, pareto: bool) -> dict[str, Any]:
        """As JSON; a low speed is a high time."""
        return {
            "name": self.contender.name,
            "quantization": self.contender.quantization,
            "fits": self.fits,
            "memory_bytes": self.told["memory_bytes"],
            "decode_tps": self.told["decode_tps"],
            "ttft_s": _times(self.ttft),
            "answer_s": _times(self.seconds),
            "pareto": pareto,
        }


def _times(seconds: Any) -> dict[str, float]:
    return {"low": seconds("high"), "median": seconds("median"), "high": seconds("low")}


def judge(
    profile: DeviceProfile,
    found: Sequence[Contender],
    recipe: ComparisonRecipe,
) -> dict[str, Any]:
    """A device's part of the document: what each contender costs there, and the choice.

    Args:
        profile: the device.
        found: all contenders.
        recipe: what was asked for.
    """
    room = profile.model_budget_gib * _GIB
    placed = [_place(profile, one, recipe, room) for one in found]
    base = common_base(found)
    gains = {id(one.contender): lead(one.contender, base, recipe.judged_by) for one in placed}
    front = [one for one in placed if one.fits and not any(
        other.fits and _beats(other, one, gains) for other in placed
    )]  # fmt: skip
    choice = _choose(placed, found, gains, recipe)
    return {
        "device": profile.name,
        "title": profile.title,
        "room_bytes": round(room),
        "contenders": [one.record(one in front) for one in placed],
        "choice": choice,
        "break_even": _break_even(choice, placed, recipe),
    }


def _place(
    profile: DeviceProfile, one: Contender, recipe: ComparisonRecipe, room: float
) -> OnDevice:
    answer = recipe.evaluate.answer_tokens
    positions = max((entry["positions"] for entry in one.entries), default=0)
    needed = one.longest_prompt + positions + answer
    told = foretell(
        profile, one.model, runtime=_RUNTIME, format=_FORMAT, quantization=one.quantization,
        size_bytes=one.bytes_first, prompt_tokens=max(1, round(one.prompt_tokens)),
        decode_tokens=answer, context=-(-needed // 256) * 256,
    )  # fmt: skip
    most = one.model.max_context
    holds = most is None or needed <= most
    return OnDevice(one, told, answer, holds and told["memory_bytes"] <= room)


def _beats(one: OnDevice, other: OnDevice, gains: dict[int, Interval]) -> bool:
    """Nowhere worse, and better somewhere."""
    mine, theirs = (_costs(which, gains) for which in (one, other))
    return mine != theirs and all(a <= b for a, b in zip(mine, theirs, strict=True))


def _costs(one: OnDevice, gains: dict[int, Interval]) -> tuple[float, ...]:
    gain = gains[id(one.contender)].value
    return -gain, one.seconds("median"), one.told["memory_bytes"], one.contender.bytes_update


def _choose(
    placed: Sequence[OnDevice],
    found: Sequence[Contender],
    gains: dict[int, Interval],
    recipe: ComparisonRecipe,
) -> dict[str, Any] | None:
    """The best; of those that the data cannot tell from it the one that costs the device least."""
    fitting = [one for one in placed if one.fits]
    left_out = []
    if recipe.max_forgetting is not None:
        for one in list(fitting):
            lost = forgetting(one.contender, plain_of(found, one.contender.quantization))
            if lost.low > recipe.max_forgetting:
                fitting.remove(one)
                left_out.append(one.contender.name)
    if not fitting:
        return None
    candidates = _candidates(fitting, common_base(found), recipe.judged_by)
    best = max(candidates, key=lambda one: gains[id(one.contender)].value)
    leads = {
        id(one): lead(best.contender, one.contender, recipe.judged_by, among=len(candidates) - 1)
        for one in candidates
        if one is not best
    }
    tied = [one for one in candidates if one is best or leads[id(one)].low <= 0]
    quick = _least(tied, lambda one: one.seconds("median"))
    small = _least(quick, lambda one: one.contender.bytes_update)
    taken = max(small, key=lambda one: gains[id(one.contender)].value)
    gain = gains[id(taken.contender)]
    return {
        "name": taken.contender.name,
        "quantization": taken.contender.quantization,
        "gain": gain.record(),
        "forgetting": forgetting(
            taken.contender, plain_of(found, taken.contender.quantization)
        ).record(),
        "best": best.contender.name,
        "undecided": [one.contender.name for one in tied if one is not taken],
        "left_out": left_out,
        "reason": _reason(
            taken, best, tied, leads, gain, recipe, all_there=len(fitting) == len(placed)
        ),
    }


def _candidates(fitting: Sequence[OnDevice], base: Contender, judged_by: str) -> Sequence[OnDevice]:
    """Those that surely beat the plain base, all looked at together; without any, the base."""
    others = len(fitting) - 1
    sure = [
        one
        for one in fitting
        if one.contender is not base
        and lead(one.contender, base, judged_by, among=max(1, others)).low > 0
    ]
    plain = [one for one in fitting if one.contender.method == "none"]
    return sure or plain or fitting


def _least(some: Sequence[OnDevice], cost: Callable[[OnDevice], float]) -> list[OnDevice]:
    """Those whose cost is the least, or alike."""
    least = min(map(cost, some))
    return [one for one in some if cost(one) <= _ALIKE * least]


def _reason(
    taken: OnDevice,
    best: OnDevice,
    tied: Sequence[OnDevice],
    leads: dict[int, Interval],
    gain: Interval,
    recipe: ComparisonRecipe,
    *,
    all_there: bool,
) -> str:
    unit = "nats a token" if recipe.judged_by == "likelihood" else "points of the metric"
    if taken.contender.method == "none":
        which = "no method" if all_there else "no method that fits and may be chosen"
        return (
            f"{which} is better than the plain base beyond the margin of error on these questions: "
            "ship the base"
        )
    base = "the plain base"
    if len(recipe.quantizations) > 1:
        base += f" in {recipe.quantizations[0]}"
    text = f"{taken.contender.name} gains {_with_margin(gain)} {unit} over {base}"
    others = [one.contender.name for one in tied if one is not taken]
    if taken is best and not others:
        runner = min(leads.items(), key=lambda item: item[1].value, default=None)
        more = "" if runner is None else f", {_with_margin(runner[1])} more than the next"
        return f"{text}{more}: the data decide for it"
    if taken is not best:
        ahead = _with_margin(leads[id(taken)])
        text += f"; {best.contender.name} is {ahead} ahead, which may be chance"
    named = ", ".join(others)
    return (
        f"{text}. The data do not decide between it and {named}; of these it "
        f"{_cheaper(taken, [one for one in tied if one is not taken])}"
    )


def _cheaper(taken: OnDevice, others: Sequence[OnDevice]) -> str:
    slower = [one for one in others if one.seconds("median") > _ALIKE * taken.seconds("median")]
    if len(slower) == len(others):
        return "answers soonest on this device"
    update = _ALIKE * taken.contender.bytes_update
    if all(one.contender.bytes_update > update for one in others if one not in slower):
        return "needs the fewest bytes for an update, of those that answer as soon"
    return "is the best of those that answer and update as cheaply"


def _break_even(
    choice: dict[str, Any] | None, placed: Sequence[OnDevice], recipe: ComparisonRecipe
) -> list[dict[str, Any]]:
    """When the choice costs less than each other contender that fits; quality does not count here.

    `queries`: in answers on this device, from the seconds that making it took longer and those that
    each answer is shorter, for the device as predicted and at the ends of the interval (a device
    that is slower than predicted is so for both); None where it is not known what making it took.
    `updates`: in updates, from the bytes of the first installation and of each update.
    """
    if choice is None:
        return []
    taken = next(
        one for one in placed
        if (one.contender.name, one.contender.quantization) == (choice["name"],
                                                                choice["quantization"])
    )  # fmt: skip
    mine, found = taken.contender, []
    for other in placed:
        if other is taken or not other.fits:
            continue
        theirs = other.contender
        works = mine.work_s, theirs.work_s
        queries = None
        if works[0] is not None and works[1] is not None:
            queries = {
                end: crossing(works[0], taken.seconds(end), works[1], other.seconds(end))
                for end in ("low", "median", "high")
            }
        updates = crossing(
            mine.bytes_first, mine.bytes_update, theirs.bytes_first, theirs.bytes_update
        )
        found.append({"against": theirs.name, "queries": queries, "updates": updates})
    return found


def crossing(fixed: float, each: float, other_fixed: float, other_each: float) -> dict[str, Any]:
    """When one way costs no more than another, of costs once and at each use.

    What is alike within 5% counts as equal: predictions and single measurements are no better.

    Returns:
        `when`: `at once` and ever after, `never`, `after` so many `uses`, or `until` then.
    """
    fixed, each = _alike(fixed, other_fixed), _alike(each, other_each)
    if fixed <= other_fixed and each <= other_each:
        return {"when": "at once", "uses": None}
    if fixed >= other_fixed and each >= other_each:
        return {"when": "never", "uses": None}
    uses = (fixed - other_fixed) / (other_each - each)
    return {"when": "after" if each < other_each else "until", "uses": uses}


def _alike(one: float, other: float) -> float:
    """The one, or the other where they are alike."""
    return other if max(one, other) <= _ALIKE * min(one, other) else one


def _with_margin(figure: Interval) -> str:
    return f"{figure.value:.3f} ({figure.low:.3f}, {figure.high:.3f})"
