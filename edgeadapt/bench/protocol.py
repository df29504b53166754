"""What the child process does to be measured: load, warm up, repeat.

A repetition starts from an empty KV cache, prefills a fixed prompt, takes the first token and
decodes greedily for a fixed number of steps, past any end-of-text token. Between repetitions,
outside of what is timed, the process looks at its own memory.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgeadapt.bench.activity import activity, between
from edgeadapt.bench.lengths import at_depth, sustain
from edgeadapt.bench.memory import high_water, memory_point
from edgeadapt.bench.pagecache import files_of, resident_fraction
from edgeadapt.jobs import open_session
from edgeadapt.runtimes.base import Session
from edgeadapt.runtimes.registry import get_runtime
from edgeadapt.worker import Progress

PROMPT = (
    "The measurement of a program begins with a fixed question, asked again and again in the "
    "same words, so that nothing but the machine can change the time that the answer takes. "
)


@dataclass
class Repetition:
    """Seconds of one repetition."""

    ttft_s: float
    """Prefill, and finding the first token."""
    steps_s: list[float]
    """Each further token."""
    tokens: list[int] = field(default_factory=list)


def prompt_ids(session: Session, count: int) -> list[int]:
    """The fixed prompt: an English text repeated to `count` tokens."""
    ids = session.encode(PROMPT)
    return (ids * (count // len(ids) + 1))[:count]


def repetition(session: Session, prompt: list[int], decode_tokens: int) -> Repetition:
    """Prefill and decode once from an empty KV cache, timing each step."""
    clock = time.perf_counter
    session.reset()
    times = [clock()]
    session.forward(prompt)
    tokens = [session.greedy()]
    times.append(clock())
    for _ in range(decode_tokens):
        session.forward([tokens[-1]])
        tokens.append(session.greedy())
        times.append(clock())
    spans = [after - before for before, after in itertools.pairwise(times)]
    return Repetition(spans[0], spans[1:], tokens)


def run(payload: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """The `bench` job, in the child."""
    phases = {}

    def phase(name: str) -> None:
        point = memory_point("self")
        if point is not None:
            phases[name] = asdict(point)

    import_s = _import_engine(payload["runtime"])
    resident = resident_fraction(files_of(Path(payload["artifact"])))
    phase("before_load")
    start = time.perf_counter()
    session = open_session(payload, context=payload["context"])
    load_s = time.perf_counter() - start
    try:
        phase("loaded")
        taken = _measure(session, payload, progress, phase)
        if payload.get("warm"):
            taken["warm"] = _after_a_prompt(session, payload, progress)
        phase("finished")
        return taken | {
            "import_s": import_s,
            "load_s": load_s,
            "resident_before_load": resident,
            "phases": phases,
            "high_water": high_water("self"),
            "version": get_runtime(payload["runtime"]).version(),
            "build": session.build_info(),
            "threads_in_use": session.threads_in_use(),
            "engine": asdict(session.facts()),
        }
    finally:
        session.close()


def _after_a_prompt(
    session: Session, payload: dict[str, Any], progress: Progress
) -> dict[str, Any]:
    from edgeadapt.bench.warm import first_tokens, ready

    start, seconds = ready(session, payload)
    question = prompt_ids(session, payload["prompt_tokens"])
    found = first_tokens(start, question, payload["repetitions"], lambda: progress(1.0))
    return found | {"ready_s": seconds}


def _import_engine(name: str) -> float:
    """Seconds that importing the engine's modules takes."""
    start = time.perf_counter()
    for module in get_runtime(name).modules:
        # What is missing or broken is named by `load`, with what to type.
        with contextlib.suppress(ImportError, OSError, RuntimeError):
            importlib.import_module(module)
    return time.perf_counter() - start


def _measure(
    session: Session, payload: dict[str, Any], progress: Progress, phase: Callable[[str], None]
) -> dict[str, Any]:
    """Warm up, repeat, and whatever else was asked for; progress is 1 after each part."""
    repetitions, decode_tokens = payload["repetitions"], payload["decode_tokens"]
    depths, seconds = payload.get("depths", ()), payload.get("sustain_s")
    prompt = prompt_ids(session, payload["prompt_tokens"])
    warmup = repetition(session, prompt, decode_tokens)
    phase("warmed_up")
    progress(1.0)
    timed = []
    before = activity()
    for _ in range(repetitions):
        timed.append(repetition(session, prompt, decode_tokens))
        progress(1.0)
    found: dict[str, Any] = {
        "first_answer_s": warmup.ttft_s,
        "ttft_s": [r.ttft_s for r in timed],
        "steps_s": [r.steps_s for r in timed],
        "activity": asdict(between(before, activity())),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "depths": [],
    }
    long = prompt_ids(session, max(depths, default=0) + 1)
    for depth in depths:
        runs = []
        for _ in range(repetitions):
            runs.append(at_depth(session, long, depth, decode_tokens))
            progress(1.0)
        found["depths"].append({"depth": depth, "runs": runs})
    if seconds is not None:
        context = payload["context"]
        found["sustained"] = sustain(session, prompt, context, seconds, lambda: progress(1.0))
    return found
