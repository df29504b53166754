from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeadapt.errors import DivergedError, RuntimeFailure
from edgeadapt.files import read_json
from edgeadapt.training.settings import TrainSettings
from edgeadapt.training.sweep import best, goes_on, run_sweep, rungs

LOSSES = st.floats(0, 100)


@given(st.integers(1, 10**6))
def test_rungs_end_with_the_last_step(steps: int) -> None:
    found = rungs(steps)
    assert found[-1] == steps and found == sorted(set(found)) and 1 <= len(found) <= 3
    assert steps < 9 or found == [steps // 9, steps // 3, steps]


@given(LOSSES, st.lists(LOSSES, max_size=12))
def test_the_best_always_goes_on_and_of_three_one(loss: float, others: list[float]) -> None:
    if all(loss < other for other in others):
        assert goes_on(loss, others)
    rank = sorted([*others, loss]).index(loss) + sum(other == loss for other in others)
    assert goes_on(loss, others) == (3 * rank < len(others) + 1 or rank == 0)


def sweep(base: Path, data: Path, folder: Path, advance: Any = lambda _: None) -> Any:
    folder.mkdir(exist_ok=True)
    combinations = [
        {
            "values": {"learning_rate": rate},
            "settings": TrainSettings(
                method="lora", r=4, max_steps=9, batch_size=2, save_every_s=0, learning_rate=rate
            ).model_dump(mode="json"),
        }
        for rate in (1e-3, 1e-2, 1e-9, 1e30)
    ]
    payload = {
        "base": str(base), "data": str(data), "validation": str(data), "base_spec": "tiny",
        "folder": str(folder), "combinations": combinations,
    }  # fmt: skip
    return run_sweep(payload, advance)["tried"]


def test_the_worse_are_stopped_and_a_killed_sweep_ends_the_same(
    base: Path, data: Path, tmp_path: Path
) -> None:
    steps: list[float] = []
    tried = sweep(base, data, tmp_path / "whole", steps.append)
    assert [one["ended"] for one in tried] == ["done", "done", "stopped", "diverged"]
    assert [[step for step, _ in one["losses"]] for one in tried[:3]] == [[1, 3, 9], [1, 3, 9], [1]]
    assert best(tried)["values"] == {"learning_rate": 1e-2}
    assert len(steps) < 9 + 9 + 1 + 9

    done: list[float] = []

    def interrupt(amount: float) -> None:
        done.append(amount)
        if len(done) == 14:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(base, data, tmp_path / "again", interrupt)
    before = read_json(tmp_path / "again/tried.json")["seconds"]
    time.sleep(0.5)  # nobody worked at it
    began = time.monotonic()
    again = sweep(base, data, tmp_path / "again", done.append)
    took = read_json(tmp_path / "again/tried.json")["seconds"] - before
    assert before > 0 and 0 < took <= time.monotonic() - began
    assert len(done) < len(steps) + 3  # it went on, and did not begin anew
    for one, other in zip(again, tried, strict=True):
        assert one["ended"] == other["ended"]
        assert [x for at in one["losses"] for x in at] == pytest.approx(
            [x for at in other["losses"] for x in at], rel=1e-5
        )


def test_what_fails_otherwise_has_not_diverged(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeFailure("out of memory", "out_of_memory")

    monkeypatch.setattr("edgeadapt.training.train.train", fail)
    with pytest.raises(RuntimeFailure, match="out of memory"):
        sweep(base, data, tmp_path / "sweep", lambda _: None)


def test_with_nothing_that_ended_there_is_no_best() -> None:
    with pytest.raises(DivergedError, match="every combination"):
        best([{"values": {}, "losses": [], "ended": "diverged"}])
