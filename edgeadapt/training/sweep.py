"""Training settings tried one after another, the worse ones stopped early.

The rule is ASHA's (Li et al., A System for Massively Parallel Hyperparameter Tuning, MLSys 2020,
with a reduction factor of 3): at a ninth and a third of the steps a run goes on only if its
validation loss is among the best third of those that have come this far.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeadapt.console import log
from edgeadapt.errors import DivergedError
from edgeadapt.files import read_json, write_json
from edgeadapt.training.settings import TrainSettings
from edgeadapt.worker import Progress

FACTOR = 3
_RUNGS = 3
_RECORD = "tried.json"


@dataclass(frozen=True)
class Watch:
    """Validation while training."""

    data: Path
    """Examples that are not trained on."""
    report: Callable[[int, int, float], bool]
    """Takes a step, the last step, and the mean loss in nats a token; false ends the training."""


def rungs(max_steps: int) -> list[int]:
    """Steps after which a run is judged; the last is its end."""
    steps = (max_steps // FACTOR**k for k in range(_RUNGS))
    return sorted({step for step in steps if step > 0})


def goes_on(loss: float, others: Sequence[float]) -> bool:
    """Whether a run stays among the best third at a rung; the first to come always does."""
    better = sum(other <= loss for other in others)
    return better < math.ceil((len(others) + 1) / FACTOR)


def best(tried: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The one with the least loss of those that came to the end.

    Raises:
        DivergedError: all diverged.
    """
    ended = [one for one in tried if one["ended"] == "done"]
    if not ended:
        raise DivergedError(
            "training diverged with every combination of the sweep; lower its rates"
        )
    return min(ended, key=lambda one: float(one["losses"][-1][1]))


def run_sweep(payload: dict[str, Any], advance: Progress) -> dict[str, Any]:
    """The `sweep` job: train each combination, and write what was found after each rung.

    Killed, it goes on from the checkpoint of the one under way.

    Args:
        payload: `base`, `data`, `validation`, `base_spec`, `folder`, and `combinations`: each its
            `values` and whole `settings`.
        advance: called after each step.

    Returns:
        `tried`: of each combination its `values`, `losses` ([step, nats a token]) and `ended`:
        done, stopped or diverged; and `seconds` of all, those before a kill included.
    """
    from edgeadapt.training.train import train

    folder = Path(payload["folder"])
    record = folder / _RECORD
    before: dict[str, Any] = {"tried": [], "seconds": 0.0}
    if record.exists():
        before = read_json(record)
    tried: list[dict[str, Any]] = before["tried"]
    began, noted = time.monotonic() - before["seconds"], 0.0

    def note() -> None:
        nonlocal noted
        noted = time.monotonic()
        write_json(record, {"tried": tried, "seconds": noted - began})

    def step() -> None:
        advance(1.0)
        if time.monotonic() - noted >= 1:
            note()

    for number, wanted in enumerate(payload["combinations"]):
        if number == len(tried):
            tried.append({"values": wanted["values"], "losses": [], "ended": None})
        one = tried[number]
        if one["ended"]:
            continue
        others = tried[:number]

        def report(step: int, last: int, loss: float, one: Any = one, others: Any = others) -> bool:
            known = [at for other in others for at in other["losses"] if at[0] == step]
            one["losses"] = [at for at in one["losses"] if at[0] < step] + [[step, loss]]
            if not math.isfinite(loss):
                one["losses"].pop()
                one["ended"] = "diverged"
            elif step < last and not goes_on(loss, [value for _, value in known]):
                one["ended"] = "stopped"
            note()
            log.info("%s: loss %.4f after step %d", one["values"], loss, step)
            return one["ended"] is None

        out, work = folder / f"out-{number}", folder / f"work-{number}"
        shutil.rmtree(out, ignore_errors=True)
        try:
            train(
                Path(payload["base"]), Path(payload["data"]), None,
                TrainSettings(**wanted["settings"]), out, base_spec=payload["base_spec"],
                work=work, watch=Watch(Path(payload["validation"]), report),
                on_step=step,
            )  # fmt: skip
        except DivergedError:
            one["ended"] = "diverged"
        one["ended"] = one["ended"] or "done"
        note()
        for place in (out, work):
            shutil.rmtree(place, ignore_errors=True)
    return {"tried": tried, "seconds": time.monotonic() - began}
