"""Training in a process of its own, with what it cost: seconds, memory, energy."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeadapt.bench.energy import Meter, find_counter
from edgeadapt.bench.memory import Sampler
from edgeadapt.console import progress
from edgeadapt.training.settings import TrainSettings
from edgeadapt.worker import Progress, run_job


@dataclass(frozen=True)
class TrainingCost:
    """What a training run took; nothing that this system does not tell is guessed."""

    seconds: float
    """Wall clock, the loading of libraries and model included."""
    peak_memory: int | None
    """Most resident bytes of the process."""
    joules: float | None
    """Of the whole machine, where it has a counter that may be read."""

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def train_apart(
    base: Path, data: Path, settings: TrainSettings, out: Path, *, base_spec: str, work: Path
) -> TrainingCost:
    """As `train`, without scoring held-out data, in a child process that is watched.

    Args:
        base: Hugging Face folder of the base model.
        data: the training data.
        settings: everything that shapes the result.
        out: folder to make.
        base_spec: what the user calls the base.
        work: folder for checkpoints; a run that was killed goes on from there, and then the cost
            is that of the rest.

    Raises:
        EdgeAdaptError: as `train`.
    """
    payload = {
        "base": str(base),
        "data": str(data),
        "settings": settings.model_dump(mode="json"),
        "out": str(out),
        "base_spec": base_spec,
        "work": str(work),
    }
    meter, start = Meter(find_counter()), time.monotonic()
    steps = settings.max_steps or 0.0
    with progress(f"training ({settings.method})", steps, "steps") as advance, Sampler() as sampler:
        meter.start()
        try:
            run_job("train", payload, on_start=sampler.start, on_progress=advance)
        finally:
            meter.stop()
    seconds = time.monotonic() - start
    seen = sampler.high_water or sampler.rss or [point.rss for point in sampler.points]
    joules = meter.counter.joules() if meter.counter is not None else None
    return TrainingCost(seconds, max(seen, default=None), joules)


def run_train(payload: dict[str, Any], advance: Progress) -> dict[str, Any]:
    """The `train` job, in the child."""
    from edgeadapt.training.train import train

    train(
        Path(payload["base"]), Path(payload["data"]), None, TrainSettings(**payload["settings"]),
        Path(payload["out"]), base_spec=payload["base_spec"], work=Path(payload["work"]),
        on_step=lambda: advance(1.0),
    )  # fmt: skip
    return {}
