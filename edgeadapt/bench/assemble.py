"""From what the child and the watchers around it found, to a `Measurement`."""

from __future__ import annotations

import statistics
from typing import Any

from edgeadapt.bench.energy import Meter
from edgeadapt.bench.lengths import summary
from edgeadapt.bench.measurement import (
    ArtifactFacts,
    Background,
    DepthSpeed,
    Distribution,
    Energy,
    Machine,
    Measurement,
    Memory,
    PageCache,
    RuntimeFacts,
    Settings,
    Sustained,
    WarmFirstToken,
)
from edgeadapt.bench.memory import MemoryPoint, Sampler


def measurement(
    artifact: ArtifactFacts,
    machine: Machine,
    settings: Settings,
    *,
    cold: bool,
    threads: int,
    runtime: str,
    result: dict[str, Any],
    sampler: Sampler,
    meter: Meter,
) -> Measurement:
    """Sum up a run.

    Args:
        artifact: what ran.
        machine: where.
        settings: how.
        cold: the page cache had been emptied of it.
        threads: asked for.
        runtime: its name.
        result: the child's, see `protocol.run`.
        sampler: of the child's memory; ended.
        meter: of energy; ended.
    """
    steps: list[list[float]] = result["steps_s"]
    phases = {name: MemoryPoint(**point) for name, point in result["phases"].items()}
    return Measurement(
        artifact=artifact,
        runtime=_runtime(runtime, threads, result),
        machine=machine,
        settings=settings,
        page_cache=PageCache(
            state="cold" if cold else "warm", resident_before_load=result["resident_before_load"]
        ),
        import_s=result["import_s"],
        load_s=result["load_s"],
        first_answer_s=result["first_answer_s"],
        ttft_s=Distribution.of(result["ttft_s"]),
        prefill_tps=Distribution.of([settings.prompt_tokens / s for s in result["ttft_s"]]),
        decode_tps=Distribution.of(_speeds(steps)),
        decode_step_s=Distribution.of([s for r in steps for s in r], keep=False),
        memory=_memory(sampler, phases, result["high_water"]),
        background=Background(
            others=result["activity"]["others"],
            steal=result["activity"]["steal"],
            load_average=result["load_average"],
        ),
        energy=_energy(meter, settings.repetitions),
        depths=tuple(_depth(**found) for found in result["depths"]),
        sustained=Sustained(**summary(**result["sustained"])) if "sustained" in result else None,
        warm=_warm(**result["warm"]) if "warm" in result else None,
    )


def _speeds(steps: list[list[float]]) -> list[float]:
    """Tokens per second of each repetition."""
    return [len(seconds) / sum(seconds) for seconds in steps]


def _runtime(name: str, threads: int, result: dict[str, Any]) -> RuntimeFacts:
    engine = result["engine"]
    return RuntimeFacts(
        name=name,
        version=result["version"],
        build=result["build"],
        threads_requested=threads,
        threads_in_use=result["threads_in_use"],
        threads_running=result["activity"]["threads_running"],
        cores_used=result["activity"]["cores_used"],
        model=engine["model"],
        parameters=engine["parameters"],
        tensor_bytes=engine["tensor_bytes"],
        gpu_layers=engine["gpu_layers"],
        gpus=tuple(engine["gpus"]),
    )


def _energy(meter: Meter, repetitions: int) -> Energy | None:
    joules = meter.counter.joules() if meter.counter is not None and meter.seconds else None
    if meter.counter is None or joules is None:
        return None
    return Energy(
        source=meter.counter.source,
        scope=meter.counter.scope,
        joules=joules,
        seconds=meter.seconds,
        repetitions=repetitions,
    )


def _warm(ttft_s: list[float], ttft_without_s: list[float], **facts: Any) -> WarmFirstToken:
    return WarmFirstToken(
        ttft_s=Distribution.of(ttft_s), ttft_without_s=Distribution.of(ttft_without_s), **facts
    )


def _depth(depth: int, runs: list[dict[str, Any]]) -> DepthSpeed:
    return DepthSpeed(
        depth=depth,
        decode_tps=Distribution.of(_speeds([run["steps_s"] for run in runs])),
        fill_s=Distribution.of([run["fill_s"] for run in runs]) if depth else None,
    )


def _memory(
    sampler: Sampler, phases: dict[str, MemoryPoint], last_high_water: int | None
) -> Memory:
    """Peaks over the samples and over what the process recorded of itself between timed parts."""
    points = [*sampler.points, *phases.values()]
    marks = [*sampler.high_water, *([last_high_water] if last_high_water else [])]
    return Memory(
        peak_rss=max(marks or sampler.rss, default=None),
        peak_anonymous=max((p.anonymous for p in points), default=None),
        peak_file_backed=max((p.file_backed for p in points), default=None),
        peak_pss=max((p.pss for p in points if p.pss is not None), default=None),
        at_peak=max(points, key=lambda p: p.rss, default=None),
        phases=phases,
        source="/proc: smaps_rollup, status" if points else "psutil rss, sampled",
        samples=len(sampler.points) or len(sampler.rss),
        sample_cost_s=statistics.median(sampler.costs_s) if sampler.costs_s else None,
    )
