"""Verdicts by hand-made figures."""

from __future__ import annotations

from typing import Any

import pytest

from edgeadapt.fidelity.gates import Gates, Verdict, judge, verdict_record


def figures(**changes: float | None) -> dict[str, Any]:
    values = {
        "mean_kl": 0.05, "top1": 0.9, "perplexity_ratio": 1.05, "adapter": 0.98, "effect": 1.0,
        "task": 0.5, "adapter_kl": 0.4, "excess": -0.01,
    } | changes  # fmt: skip
    one = {name: {"value": value, "standard_error": 0.01} for name, value in values.items()}
    return {
        "fidelity": {name: one[name] for name in ("mean_kl", "top1", "perplexity_ratio")},
        "bits": {"kl": one["mean_kl"], "excess_kl": one["excess"]},
        "retention": {
            "adapter": values["adapter"],
            "adapter_kl": one["adapter_kl"],
            "effect": {"float_base": one["effect"], "quantized_base": None},
        },
        "task": None if values["task"] is None else {"metric": "f1"} | one["task"],
    }


def failed(gates: Gates, found: dict[str, Any]) -> list[str]:
    names: list[str] = verdict_record(judge(gates, found))["failed_gates"]
    return names


@pytest.mark.parametrize(
    ("changes", "gate"),
    [
        ({"mean_kl": 0.21}, "max_kl"),
        ({"mean_kl": float("nan")}, "max_kl"),
        ({"excess": 0.03}, "max_excess_kl"),
        ({"top1": 0.59}, "min_top1"),
        ({"perplexity_ratio": 1.41}, "max_perplexity_ratio"),
        ({"adapter": 0.84}, "min_retention"),
        ({"task": 0.39}, "min_task_metric"),
    ],
)
def test_each_gate_judges_its_figure(changes: dict[str, float], gate: str) -> None:
    gates = Gates(min_task_metric=0.4)
    assert failed(gates, figures()) == []
    assert failed(gates, figures(**changes)) == [gate]


def test_a_gate_can_be_switched_off() -> None:
    off = Gates(**dict.fromkeys(set(Gates.model_fields) - {"parity"}))
    bad = figures(mean_kl=9.0, excess=9.0, top1=0.0, adapter=-1.0, perplexity_ratio=9.0)
    assert judge(off, bad) == []


def test_without_an_adapter_or_a_task_there_is_nothing_to_judge() -> None:
    found = figures(task=None) | {"retention": None, "bits": None}
    gates = {verdict.gate for verdict in judge(Gates(min_task_metric=0.4), found)}
    assert gates == {"max_kl", "min_top1", "max_perplexity_ratio"}


def test_an_adapter_that_changes_next_to_nothing_is_said_not_to_be_judged() -> None:
    found = figures(adapter=None, adapter_kl=0.001)
    (verdict,) = (v for v in judge(Gates(), found) if v.gate == "min_retention")
    assert verdict.passed and verdict.figure is None
    assert "not judged" in verdict.note and "0.001" in verdict.note


@pytest.mark.parametrize(
    ("effect", "words"),
    [
        (0.02, "not in it"),
        (0.5, "0.50 times as much"),
        (1.4, "too much, 1.40 times"),
        (0.99, "another base"),
    ],
)
def test_retention_says_which_way_it_is_off(effect: float, words: str) -> None:
    verdict = next(
        verdict
        for verdict in judge(Gates(), figures(adapter=0.1, effect=effect))
        if verdict.gate == "min_retention"
    )
    assert words in str(verdict) and "0.1, expected at least 0.85" in str(verdict)


def test_verdicts_from_elsewhere_count() -> None:
    parity = Verdict("parity", None, True, False, "token 3 is 'a', expected 'b'")
    record = verdict_record(judge(Gates(), figures(), [parity]))
    assert record["failed_gates"] == ["parity"] and not record["passed"]
    assert str(parity) == "parity: token 3 is 'a', expected 'b'"
