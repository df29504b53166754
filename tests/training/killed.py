"""Run as a script: train the same run again and again, each time killed at another point.

Libraries are imported once; each run is a fork, which ends itself by SIGKILL at its point.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeadapt import console
from edgeadapt.training import loop, train
from edgeadapt.training.checkpoints import WorkFolder
from edgeadapt.training.settings import TrainSettings

SETTINGS = TrainSettings(
    method="lora", r=4, dropout=0.1, max_steps=8, batch_size=2, learning_rate=1e-3, save_every_s=0
)
"""Ten examples, so an epoch ends after step 5; a checkpoint after every step."""

POINTS: list[tuple[str, int]] = [
    ("step", 1),  # before any checkpoint
    ("step", 3),
    ("save", 5),  # the checkpoint at the epoch's end is there but not known to be complete
    ("saved", 5),  # it is
    ("step", 7),  # within the second epoch
    ("save", 8),
    ("saved", 8),  # all steps done, nothing published
    ("publish", 0),
]


def killing(function: Callable[..., Any], step: int | None = None) -> Callable[..., Any]:
    def instead(*args: Any, **kwargs: Any) -> Any:
        # The step is the first argument after self, where there is one.
        if step is None or args[1] == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    return instead


def mark_then_die(self: WorkFolder, step: int, _mark: Any = WorkFolder.mark_complete) -> None:
    _mark(self, step)
    if step == int(os.environ["AT"]):
        os.kill(os.getpid(), signal.SIGKILL)


def set_trap(point: str, step: int) -> None:
    if point == "step":
        WorkFolder.note_examples = killing(WorkFolder.note_examples, step)  # type: ignore[method-assign]
    elif point == "save":
        WorkFolder.mark_complete = killing(WorkFolder.mark_complete, step)  # type: ignore[method-assign]
    elif point == "saved":
        os.environ["AT"] = str(step)
        WorkFolder.mark_complete = mark_then_die  # type: ignore[method-assign]
    elif point == "publish":
        train.atomic_folder = killing(train.atomic_folder)


def run(base: Path, data: Path, folder: Path, name: str, method: str) -> None:
    settings = SETTINGS.model_copy(update={"method": method})
    train.train(
        base, data, data, settings, folder / name, base_spec="tiny", work=folder / f"{name}-work"
    )


def main(base: Path, data: Path, folder: Path, method: str) -> None:
    assert loop.Trainer  # imported before the forks
    console.set_verbosity(0)
    for point, step in [*POINTS, ("", 0)]:
        child = os.fork()
        if child == 0:
            set_trap(point, step)
            run(base, data, folder, "killed", method)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        expected = -signal.SIGKILL if point else 0
        assert os.waitstatus_to_exitcode(status) == expected, (point, step, status)
        assert point == "" or not (folder / "killed").exists()
    run(base, data, folder, "undisturbed", method)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), method=sys.argv[4])
