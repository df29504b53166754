"""Training in a process of its own, with what it cost: seconds, memory, energy."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeadapt.bench.energy import Meter, find_counter
from edgeadapt.bench.memory import Sampler
from edgeadapt.console import progress
from edgeadapt.errors import CorruptFileError
from edgeadapt.files import read_json, write_json
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

    def and_then(self, other: TrainingCost) -> TrainingCost:
        """Both, one after the other."""
        peaks = [peak for peak in (self.peak_memory, other.peak_memory) if peak is not None]
        known = self.joules is not None and other.joules is not None
        return TrainingCost(
            self.seconds + other.seconds,
            max(peaks, default=None),
            (self.joules or 0.0) + (other.joules or 0.0) if known else None,
        )

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def train_apart(
    base: Path,
    data: Path,
    settings: TrainSettings,
    out: Path,
    *,
    base_spec: str,
    work: Path,
    ledger: Path,
) -> TrainingCost:
    """As `train`, without scoring held-out data, in a child process that is watched.

    What it costs is written down once a second, and goes on from there in a run that was killed:
    steps that had to be done again count as often as they were done.

    Args:
        base: Hugging Face folder of the base model.
        data: the training data.
        settings: everything that shapes the result.
        out: folder to make.
        base_spec: what the user calls the base.
        work: folder for checkpoints; a run that was killed goes on from there.
        ledger: the file with the cost so far.

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
    before = read_cost(ledger) if ledger.is_file() else None
    meter, start, noted = Meter(find_counter()), time.monotonic(), 0.0
    steps = settings.max_steps or 0.0

    def spent() -> TrainingCost:
        seen = sampler.high_water or sampler.rss or [point.rss for point in list(sampler.points)]
        joules = meter.counter.joules() if meter.counter is not None else None
        now = TrainingCost(time.monotonic() - start, max(seen, default=None), joules)
        return now if before is None else before.and_then(now)

    def step(amount: float) -> None:
        nonlocal noted
        advance(amount)
        if time.monotonic() - noted >= 1:
            noted = time.monotonic()
            write_json(ledger, spent().record())

    with progress(f"training ({settings.method})", steps, "steps") as advance, Sampler() as sampler:
        meter.start()
        try:
            run_job("train", payload, on_start=sampler.start, on_progress=step)
        finally:
            meter.stop()
    cost = spent()
    write_json(ledger, cost.record())
    return cost


def read_cost(ledger: Path) -> TrainingCost:
    """What a ledger of `train_apart` says.

    Raises:
        InputError: it is not there, or damaged.
    """
    try:
        return TrainingCost(**read_json(ledger))
    except TypeError as error:
        raise CorruptFileError(f"{ledger} does not say what a training cost") from error


def run_train(payload: dict[str, Any], advance: Progress) -> dict[str, Any]:
    """The `train` job, in the child."""
    from edgeadapt.training.train import train

    train(
        Path(payload["base"]), Path(payload["data"]), None, TrainSettings(**payload["settings"]),
        Path(payload["out"]), base_spec=payload["base_spec"], work=Path(payload["work"]),
        on_step=lambda: advance(1.0),
    )  # fmt: skip
    return {}
