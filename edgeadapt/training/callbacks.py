"""What happens between the steps of a training: progress, checkpoints, validation.

Imports transformers; import it only to train.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import transformers

from edgeadapt.console import Advance
from edgeadapt.data.encode import Encoded
from edgeadapt.training.checkpoints import WorkFolder
from edgeadapt.training.score import score_model
from edgeadapt.training.sweep import Watch, rungs
from edgeadapt.training.world import World


class Follow(transformers.TrainerCallback):  # type: ignore[misc]
    """Shows progress, asks for checkpoints by the clock and marks the complete ones."""

    def __init__(self, work: WorkFolder, world: World, every_s: float, advance: Advance) -> None:
        self._work, self._world, self._every_s, self._advance = work, world, every_s, advance
        self._saved = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask for a checkpoint where it is time."""
        # Processes save together, and have clocks of their own.
        due = self._world.tell(time.monotonic() - self._saved >= self._every_s)
        control.should_save = due or state.global_step >= state.max_steps

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Show the loss, and end a training that diverged."""
        if "loss" in (logs or {}):
            self._advance(1, note=f"loss {float(logs['loss']):.3f}")
            control.should_training_stop |= not math.isfinite(float(logs["loss"]))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Mark the checkpoint complete."""
        self._world.wait()  # each saved a part
        if self._world.leads:
            self._work.mark_complete(state.global_step)
        self._saved = time.monotonic()


class Validate(transformers.TrainerCallback):  # type: ignore[misc]
    """Scores the validation examples at each rung, and ends what is not to go on."""

    def __init__(self, watch: Watch, encoded: Sequence[Encoded]) -> None:
        self._watch, self._encoded = watch, encoded

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Validate where the step is a rung."""
        step = state.global_step
        if step in rungs(state.max_steps):
            score = score_model(model, self._encoded, title="validation loss").record()
            on = self._watch.report(step, state.max_steps, score["nll"])
            control.should_training_stop |= not on
