"""Benchmark an artifact: prepare the page cache, run the child, watch its memory, sum it up."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

from edgeadapt.artifact import Artifact, open_artifact
from edgeadapt.bench.assemble import measurement
from edgeadapt.bench.energy import Meter, find_counter
from edgeadapt.bench.lengths import window_s
from edgeadapt.bench.machine import this_machine
from edgeadapt.bench.measurement import ArtifactFacts, Measurement, Settings
from edgeadapt.bench.memory import Sampler
from edgeadapt.bench.pagecache import drop, files_of, read_once
from edgeadapt.console import log
from edgeadapt.errors import InputError, UnsupportedError
from edgeadapt.jobs import available_threads
from edgeadapt.prefix import runtimes_beside
from edgeadapt.runtimes.registry import (
    get_runtime,
    installed_runtimes,
    keeping_state,
    runtimes_for,
)
from edgeadapt.warm.prompt import read_warm
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
    warm: Path | None = None,
    depths: Sequence[int] = (),
    sustain_s: float | None = None,
    gpu_layers: int | None = None,
    memory_limit: int | None = None,
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
        warm: a warm prompt: also take the time to the first token after it, with its state and
            without.
        depths: also decode with so many tokens in the KV cache already.
        sustain_s: then decode for so many seconds without a rest, and watch the machine.
        gpu_layers: layers to give to a GPU, -1 for all (llama.cpp).
        memory_limit: bytes of memory of its own that the process may ask for (Linux).
        timeout_s: give up after so many seconds, those of `sustain_s` apart.

    Raises:
        InputError: the artifact cannot be opened, or does not run on that runtime.
        UnsupportedError: `cold` on a system that cannot drop pages, a memory limit on one that
            has none, or GPU layers for an engine that takes none.
        MissingExtraError: the runtime is not installed.
        RuntimeFailure: the child died, timed out or failed; its `outcome` says how.
    """
    artifact = open_artifact(path)
    before = len(read_warm(warm).ids) if warm is not None else 0
    settings = _settings(
        prompt_tokens, decode_tokens, repetitions, context, depths, before
    ).model_copy(
        update={
            "adapter": adapter.name if adapter is not None else None,
            "warm": warm.name if warm is not None else None,
            "sustain_s": sustain_s,
            "gpu_layers": gpu_layers,
            "memory_limit": memory_limit,
        }
    )
    (name,) = runtimes_of(path, runtime, adapter, keeping=warm is not None)
    check_gpu_layers(name, gpu_layers)
    facts = _facts(artifact)
    machine = this_machine(watch_s=_WATCH_S)
    threads = threads or available_threads()
    payload = {
        "artifact": str(path),
        "runtime": name,
        "adapter": None if adapter is None else str(adapter),
        "threads": threads,
        "provider": provider,
        **settings.model_dump(mode="json", exclude={"adapter", "warm"}),
        "warm": None if warm is None else str(warm),
    }
    _prepare_cache(path, cold)
    meter = Meter(find_counter())
    windows = math.ceil(sustain_s / window_s(sustain_s)) if sustain_s else 0
    parts = _WARMUPS + repetitions * (1 + len(depths)) + windows
    parts += repetitions + 1 if warm is not None else 0
    count = _Counter(f"bench {path.name} on {name}", parts, meter, repetitions)
    with Sampler() as sampler:
        try:
            result = run_job(
                "bench",
                payload,
                timeout_s=None if timeout_s is None else timeout_s + (sustain_s or 0.0),
                memory_limit=memory_limit,
                on_start=sampler.start,
                on_progress=count.add,
            )
        finally:
            meter.stop()
    return measurement(
        facts,
        machine,
        settings,
        cold=cold,
        threads=threads,
        runtime=name,
        result=result,
        sampler=sampler,
        meter=meter,
    )


class _Counter:
    """A line now and then (a live progress bar would compute beside what is measured), and the
    energy meter started and stopped with the timed repetitions."""

    def __init__(
        self, title: str, total: int, meter: Meter, repetitions: int, every_s: float = 10.0
    ) -> None:
        self._title, self._total, self._every_s = title, total, every_s
        self._meter, self._repetitions = meter, repetitions
        self._done = 0
        self._last = time.monotonic()
        log.info("%s ...", title)

    def add(self, amount: float) -> None:
        self._done += int(amount)
        if self._done == _WARMUPS:
            self._meter.start()
        elif self._done == _WARMUPS + self._repetitions:
            self._meter.stop()
        now = time.monotonic()
        if now - self._last >= self._every_s and self._done < self._total:
            log.info("%s: part %d of %d done", self._title, self._done, self._total)
            self._last = now


def _settings(
    prompt_tokens: int,
    decode_tokens: int,
    repetitions: int,
    context: int | None,
    depths: Sequence[int],
    before: int,
) -> Settings:
    """`before`: tokens of a warm prompt, before the prompt."""
    if min(prompt_tokens, decode_tokens, repetitions) < 1 or min(depths, default=0) < 0:
        raise InputError(
            "prompt tokens, decode tokens and repetitions must be at least 1, depths at least 0"
        )
    deepest = max(prompt_tokens, *depths) if depths else prompt_tokens
    needed = max(deepest + decode_tokens, before + prompt_tokens + 1 if before else 0)
    if before and context is not None and context < needed:
        raise InputError(
            f"{before} tokens of the warm prompt and {prompt_tokens} after it need a context of "
            f"{needed}; --context is {context}"
        )
    if context is not None and context < needed:
        raise InputError(
            f"{deepest} {'prompt' if deepest == prompt_tokens else 'depth'} and {decode_tokens} "
            f"decode tokens need a context of {needed}; --context is {context}"
        )
    return Settings(
        prompt_tokens=prompt_tokens,
        decode_tokens=decode_tokens,
        repetitions=repetitions,
        warmup_repetitions=_WARMUPS,
        context=context or -(-needed // 256) * 256,
        depths=tuple(depths),
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


def runtimes_of(
    path: Path, runtime: str | None, adapter: Path | None = None, *, keeping: bool = False
) -> tuple[str, ...]:
    """Runtimes to measure an artifact on.

    Args:
        path: the artifact.
        runtime: a name, `all` for each installed one that loads the artifact, or None.
        adapter: what runs beside it; a prefix leaves out those that cannot start from one.
        keeping: leave out those that cannot begin from a saved state.

    Raises:
        InputError: the artifact cannot be opened, or does not run on that runtime.
        UnsupportedError: the prefix does not, or it cannot begin from a saved state.
        MissingExtraError: none is installed.
    """
    format = open_artifact(path).format
    if runtime in (None, "all"):
        found = runtimes_beside(installed_runtimes(format), adapter)
        found = keeping_state(found) if keeping else found
        return found if runtime else found[:1]
    if format not in get_runtime(runtime).formats:
        fitting = ", ".join(runtimes_for(format))
        raise InputError(f"{runtime} does not load {path} ({format}); choose --runtime {fitting}")
    found = runtimes_beside((runtime,), adapter)
    return keeping_state(found) if keeping else found


def check_gpu_layers(runtime: str, layers: int | None) -> None:
    """See that an engine can be told how many layers go to a GPU; None always can.

    Raises:
        UnsupportedError: it cannot.
    """
    if layers is not None and runtime != "llama-cpp":
        raise UnsupportedError(
            f"{runtime} takes no --gpu-layers; that is for llama-cpp, ONNX runtimes choose a GPU "
            "with --provider"
        )
