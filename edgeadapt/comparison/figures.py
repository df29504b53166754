"""From trials to contenders: gains, intervals and costs, over seeds and questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeadapt.comparison.statistics import Float64Array, Interval, interval
from edgeadapt.planner.model import ModelFacts

Groups = Mapping[str, Sequence[int]]
"""Of the questions of `domain`, `general` and `task`, the number of the group that each is of;
nothing where each is its own."""

Outcome = str
"""Of a comparison with the plain base: `better`, `worse` or `undecided`."""


@dataclass(frozen=True)
class Contender:
    """A method in the way it ships and in a quantization, over all seeds."""

    name: str
    """Of this one alone."""
    method: str
    ship: str
    fraction: float
    quantization: str
    trials: tuple[Mapping[str, Any], ...]
    """One for each seed."""
    entries: tuple[Mapping[str, Any], ...]
    """Of these trials, in the same order."""
    groups: Groups

    @property
    def seedless(self) -> bool:
        """Whether it is done once because no seed changes it: the base, or retrieval from all."""
        return len(self.trials) == 1 and self.trials[0]["training"] is None

    def nll(self, what: str) -> Float64Array:
        """-log probability of each answer of `domain` or `general`, shape (seeds, questions)."""
        return np.array([entry[what]["nll"] for entry in self.entries])

    def tokens(self, what: str) -> Float64Array:
        """Tokens of each answer, shape (questions,)."""
        return np.array(self.entries[0][what]["tokens"], np.float64)

    @property
    def task(self) -> Float64Array | None:
        """The metric of each question, shape (seeds, questions)."""
        if self.entries[0]["task"] is None:
            return None
        return np.array([entry["task"]["values"] for entry in self.entries])

    @property
    def trained(self) -> dict[str, Any] | None:
        """What training took and changed; medians over seeds."""
        runs = [trial["training"] for trial in self.trials if trial["training"]]
        if not runs:
            return None

        def middle(name: str) -> float | None:
            values = [run[name] for run in runs if run[name] is not None]
            return float(np.median(values)) if values else None

        return {
            "parameters": runs[0]["trained_parameters"],
            "steps": runs[0]["steps"],
            "learning_rate": runs[0]["learning_rate"],
            "resumed": any(run["resumed"] for run in runs),
            **{name: middle(name) for name in ("seconds", "peak_memory", "joules")},
        }

    @property
    def work_s(self) -> float | None:
        """Seconds of all that was done to make it: training, its sweep, or the search for a prompt;
        None if it is not known."""
        found = []
        for trial in self.trials:
            training = trial["training"]
            parts = [trial.get("prompting_s") or 0.0]
            if training is not None:
                parts += [training["seconds"], (training.get("sweep") or {}).get("seconds", 0.0)]
            if any(part is None for part in parts):
                return None
            found.append(sum(parts))
        return float(np.median(found))

    @property
    def model(self) -> ModelFacts:
        """The model in its artifact."""
        return ModelFacts(**self.entries[0]["model"])

    @property
    def bytes_first(self) -> int:
        """To ship for the first installation."""
        return int(max(e["artifact"]["bytes"] + _beside(e) for e in self.entries))

    @property
    def bytes_update(self) -> int:
        """To ship when it is trained anew: what lies beside the base, else all."""
        if self.method == "none":
            return 0
        if self.ship == "separate":
            return max(_beside(entry) for entry in self.entries)
        return self.bytes_first

    @property
    def prompt_tokens(self) -> float:
        """Before an answer, on average."""
        return float(np.mean([entry["prompt"]["mean"] for entry in self.entries]))

    @property
    def longest_prompt(self) -> int:
        """In tokens."""
        return int(max(entry["prompt"]["max"] for entry in self.entries))

    def measured(self, *path: str) -> float | None:
        """The median over seeds of a figure of the benchmark on this machine."""
        values = []
        for entry in self.entries:
            value: Any = entry["bench"]
            for name in path:
                value = value[name]
            if value is not None:
                values.append(value)
        return float(np.median(values)) if values else None


def _beside(entry: Mapping[str, Any]) -> int:
    return int(entry["beside"]["bytes"]) if entry["beside"] else 0


def contenders(
    trials: Sequence[Mapping[str, Any]], groups: Groups | None = None
) -> list[Contender]:
    """Trials of several seeds as one contender each, in the recipe's order."""
    gathered: dict[tuple[str, str, float, str], list[tuple[Mapping[str, Any], Any]]] = {}
    ships: dict[str, set[str]] = {}
    for trial in trials:
        label, fraction = trial["label"], trial["fraction"]
        for entry in trial["entries"]:
            ships.setdefault(label, set()).add(entry["ship"])
            key = label, entry["ship"], fraction, entry["quantization"]
            gathered.setdefault(key, []).append((trial, entry))
    several = len({quantization for *_, quantization in gathered}) > 1
    found = []
    for (label, ship, fraction, quantization), members in gathered.items():
        name = label if len(ships[label]) == 1 else f"{label}, {ship}"
        if fraction != 1:
            name += f", {100 * fraction:g}% of data"
        if several:
            name += f", {quantization}"
        found.append(
            Contender(
                name,
                members[0][0]["method"],
                ship,
                fraction,
                quantization,
                tuple(trial for trial, _ in members),
                tuple(entry for _, entry in members),
                groups or {},
            )
        )
    return found


def plain_of(found: Sequence[Contender], quantization: str) -> Contender:
    """The plain base in a quantization."""
    return next(c for c in found if c.method == "none" and c.quantization == quantization)


def common_base(found: Sequence[Contender]) -> Contender:
    """The plain base in the recipe's first quantization: what all contenders are measured by."""
    return next(contender for contender in found if contender.method == "none")


def lead(one: Contender, other: Contender, judged_by: str, *, among: int = 1) -> Interval:
    """How much better one is than the other, question by question.

    Args:
        one: the one.
        other: the other.
        judged_by: `likelihood`, in nats an answer token, or `task`, in its metric.
        among: how many leads are looked at together; see `interval`.
    """
    if judged_by != "task":
        return _likelier(one, other, "domain", among)
    mine, theirs = one.task, other.task
    assert mine is not None and theirs is not None
    return interval(
        _difference(one, mine, other, theirs), np.ones(mine.shape[1]),
        groups=one.groups.get("task"), among=among,
    )  # fmt: skip


def forgetting(one: Contender, plain: Contender) -> Interval:
    """Nats a token that it lost on general questions; negative if it gained."""
    return _likelier(plain, one, "general")


def _likelier(one: Contender, other: Contender, what: str, among: int = 1) -> Interval:
    return interval(
        _difference(other, other.nll(what), one, one.nll(what)), one.tokens(what),
        groups=one.groups.get(what), among=among,
    )  # fmt: skip


def _difference(
    one: Contender, mine: Float64Array, other: Contender, theirs: Float64Array
) -> Float64Array:
    """Of values of each question, seed by seed, shape (seeds, questions).

    What no seed changes is taken from each seed of the other. A seed that only one of them has,
    since it failed for the other, is left out; if they share none, their means are compared.
    """
    if not (one.seedless or other.seedless):
        places = [{trial["seed"]: row for row, trial in enumerate(c.trials)} for c in (one, other)]
        if shared := sorted(places[0].keys() & places[1].keys()):
            mine, theirs = (
                values[[place[seed] for seed in shared]]
                for values, place in zip((mine, theirs), places, strict=True)
            )
        else:
            mine, theirs = mine.mean(0, keepdims=True), theirs.mean(0, keepdims=True)
    difference: Float64Array = mine - theirs
    return difference


def outcome(gain: Interval) -> Outcome:
    """What an interval says."""
    if not gain.decided:
        return "undecided"
    return "better" if gain.value > 0 else "worse"


def record(
    one: Contender, found: Sequence[Contender], parameters: int, judged_by: str = "likelihood"
) -> dict[str, Any]:
    """A contender's figures beside the plain base's in the same quantization, as JSON.

    Args:
        one: the contender.
        found: all contenders.
        parameters: of the base.
        judged_by: what a choice goes by.
    """
    plain = plain_of(found, one.quantization)
    gain, tokens = lead(one, plain, "likelihood"), one.tokens("domain")
    judged = gain if judged_by == "likelihood" else lead(one, plain, judged_by)
    trained = one.trained
    task = one.task
    fidelity = [entry["fidelity"] for entry in one.entries if entry["fidelity"]]
    return {
        "name": one.name,
        "method": one.method,
        "ship": one.ship,
        "fraction": one.fraction,
        "quantization": one.quantization,
        "seeds": [trial["seed"] for trial in one.trials],
        "trained": trained and trained | {"share": trained["parameters"] / parameters},
        "bytes": {"first": one.bytes_first, "update": one.bytes_update},
        "perplexity": float(np.exp(one.nll("domain").mean(0).sum() / tokens.sum())),
        "gain": gain.record(),
        "ahead": lead(one, common_base(found), judged_by).record(),
        "beside_base": outcome(judged),
        "work_s": one.work_s,
        "task": None
        if task is None
        else {
            "metric": one.entries[0]["task"]["metric"],
            "score": interval(task, np.ones(task.shape[1]), groups=one.groups.get("task")).record(),
            "gain": lead(one, plain, "task").record(),
        },
        "forgetting": forgetting(one, plain).record(),
        "fidelity": None
        if not fidelity
        else {
            name: float(np.mean([figures[name]["value"] for figures in fidelity]))
            for name in ("mean_kl", "kl_kept", "effect")
            if all(figures.get(name, {}).get("value") is not None for figures in fidelity)
        },
        "here": {
            "prompt_tokens": one.prompt_tokens,
            "ttft_s": one.measured("ttft_s", "median"),
            "decode_tps": one.measured("decode_tps", "median"),
            "peak_anonymous": one.measured("memory", "peak_anonymous"),
        },
    }
