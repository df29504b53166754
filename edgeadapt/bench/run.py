"""Benchmark an artifact: prepare the page cache, run the child, watch its memory, sum it up."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeadapt.artifact import Artifact, open_artifact
from edgeadapt.bench.machine import this_machine
from edgeadapt.bench.measurement import (
    ArtifactFacts,
    Distribution,
    Machine,
    Measurement,
    Memory,
    PageCache,
    RuntimeFacts,
    Settings,
)
from edgeadapt.bench.memory import MemoryPoint, Sampler
from edgeadapt.bench.pagecache import drop, files_of, read_once
from edgeadapt.console import log
from edgeadapt.errors import InputError, UnsupportedError
from edgeadapt.jobs import available_threads
from edgeadapt.runtimes.registry import (
    get_runtime,
    installed_runtimes,
    preferred_runtime,
    runtimes_for,
)
from edgeadapt.worker import run_job

_WARMUPS = 1
_WATCH_S = 0.5


def bench_artifact(
    path: Path,
    *,
    runtime: str | None = None,
    threads: int | None = None,
    prompt_tokens: int = 128,
    decode_tokens: int = 64,
    repetitions: int = 5,
    cold: bool = False,
    context: int | None = None,
    provider: str | None = None,
    adapter: Path | None = None,
    timeout_s: float | None = 1800.0,
) -> Measurement:
    """Measure load time, latency, speed and memory of an artifact, in a child process.

    Args:
        path: a GGUF file or an exported folder.
        runtime: its name; by default the preferred installed one for the artifact's format.
        threads: by default the physical cores that this process may use.
        prompt_tokens: length of the prompt.
        decode_tokens: greedy steps after the first token.
        repetitions: timed ones; one more, not counted, warms up.
        cold: drop the artifact from the page cache before loading; else read it once.
        context: KV cache size in tokens; by default just enough, in steps of 256.
        provider: execution provider of an ONNX runtime; the CPU by default.
        adapter: one to activate; loading it counts as loading.
        timeout_s: give up after so many seconds.

    Raises:
        InputError: the artifact cannot be opened, or does not run on that runtime.
        UnsupportedError: `cold` on a system that cannot drop pages.
        MissingExtraError: the runtime is not installed.
        RuntimeFailure: the child died, timed out or failed.
    """
    artifact = open_artifact(path)
    settings = _settings(prompt_tokens, decode_tokens, repetitions, context)
    if adapter is not None:
        settings = settings.model_copy(update={"adapter": adapter.name})
    (name,) = _runtimes(path, runtime)
    facts = _facts(artifact)
    machine = this_machine(watch_s=_WATCH_S)
    threads = threads or available_threads()
    payload = {
        "artifact": str(path),
        "runtime": name,
        "adapter": None if adapter is None else str(adapter),
        "threads": threads,
        "provider": provider,
        **settings.model_dump(include={"prompt_tokens", "decode_tokens", "repetitions", "context"}),
    }
    _prepare_cache(path, cold)
    count = _Counter(f"bench {path.name} on {name}", repetitions + _WARMUPS)
    with Sampler() as sampler:
        result = run_job(
            "bench", payload, timeout_s=timeout_s, on_start=sampler.start, on_progress=count.add
        )
    return _measurement(facts, machine, settings, cold, threads, name, result, sampler)


class _Counter:
    """A line now and then. A live progress bar would compute beside what is measured."""

    def __init__(self, title: str, total: int, every_s: float = 10.0) -> None:
        self._title, self._total, self._every_s = title, total, every_s
        self._done = 0
        self._last = time.monotonic()
        log.info("%s ...", title)

    def add(self, amount: float) -> None:
        self._done += int(amount)
        now = time.monotonic()
        if now - self._last >= self._every_s and self._done < self._total:
            log.info("%s: run %d of %d done", self._title, self._done, self._total)
            self._last = now


def _settings(
    prompt_tokens: int, decode_tokens: int, repetitions: int, context: int | None
) -> Settings:
    if min(prompt_tokens, decode_tokens, repetitions) < 1:
        raise InputError("prompt tokens, decode tokens and repetitions must be at least 1")
    needed = prompt_tokens + decode_tokens
    if context is not None and context < needed:
        raise InputError(
            f"{prompt_tokens} prompt and {decode_tokens} decode tokens need a context of "
            f"{needed}; --context is {context}"
        )
    return Settings(
        prompt_tokens=prompt_tokens,
        decode_tokens=decode_tokens,
        repetitions=repetitions,
        warmup_repetitions=_WARMUPS,
        context=context or -(-needed // 256) * 256,
    )


def _facts(artifact: Artifact) -> ArtifactFacts:
    return ArtifactFacts(
        path=str(artifact.path),
        format=artifact.format,
        quantization=artifact.quantization,
        size_bytes=artifact.size_bytes,
        sha256=artifact.sha256(),
    )


def _prepare_cache(path: Path, cold: bool) -> None:
    """The last thing before the child starts: hashing has read the files."""
    files = files_of(path)
    if not cold:
        read_once(files)
    elif not drop(files):
        raise UnsupportedError(
            "this system cannot drop files from the page cache, so --cold cannot be measured here"
        )


def _measurement(
    artifact: ArtifactFacts,
    machine: Machine,
    settings: Settings,
    cold: bool,
    threads: int,
    runtime: str,
    result: dict[str, Any],
    sampler: Sampler,
) -> Measurement:
    steps: list[list[float]] = result["steps_s"]
    phases = {name: MemoryPoint(**point) for name, point in result["phases"].items()}
    return Measurement(
        artifact=artifact,
        runtime=RuntimeFacts(
            name=runtime,
            version=result["version"],
            build=result["build"],
            threads_requested=threads,
            threads_in_use=result["threads_in_use"],
        ),
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
        decode_tps=Distribution.of([len(r) / sum(r) for r in steps]),
        decode_step_s=Distribution.of([s for r in steps for s in r], keep=False),
        memory=_memory(sampler, phases, result["high_water"]),
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
        source="/proc: smaps_rollup, VmHWM" if points else "psutil rss, sampled",
        samples=len(sampler.points) or len(sampler.rss),
        sample_cost_s=statistics.median(sampler.costs_s) if sampler.costs_s else None,
    )


def bench_all(
    paths: Sequence[Path], *, runtime: str | None = None, **options: Any
) -> list[Measurement]:
    """Measure several artifacts one after another; everything is checked before the first runs.

    Args:
        paths: the artifacts.
        runtime: a name, `all` for each installed one that loads the artifact, or None.
        options: as of `bench_artifact`.

    Raises:
        EdgeAdaptError: as `bench_artifact`.
    """
    pairs = [(path, name) for path in paths for name in _runtimes(path, runtime)]
    return [bench_artifact(path, runtime=name, **options) for path, name in pairs]


def _runtimes(path: Path, runtime: str | None) -> tuple[str, ...]:
    format = open_artifact(path).format
    if runtime == "all":
        return installed_runtimes(format)
    name = runtime or preferred_runtime(format)
    if format not in get_runtime(name).formats:
        fitting = ", ".join(runtimes_for(format))
        raise InputError(f"{name} does not load {path} ({format}); choose --runtime {fitting}")
    return (name,)
