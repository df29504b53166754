"""What the child process does to be measured: load, warm up, repeat.

A repetition starts from an empty KV cache, prefills a fixed prompt, takes the first token and
decodes greedily for a fixed number of steps, past any end-of-text token. Between repetitions,
outside of what is timed, the process looks at its own memory.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

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


def _load(payload: dict[str, Any]) -> tuple[Session, float]:
    start = time.perf_counter()
    session = open_session(payload, context=payload["context"])
    return session, time.perf_counter() - start


def run(payload: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """The `bench` job, in the child."""
    phases = {}

    def phase(name: str) -> None:
        point = memory_point("self")
        if point is not None:
            phases[name] = asdict(point)

    start = time.perf_counter()
    runtime = get_runtime(payload["runtime"])
    for module in runtime.modules:
        # What is missing or broken is named by `load`, with what to type.
        with contextlib.suppress(ImportError, OSError, RuntimeError):
            importlib.import_module(module)
    import_s = time.perf_counter() - start
    resident = resident_fraction(files_of(Path(payload["artifact"])))
    phase("before_load")
    session, load_s = _load(payload)
    try:
        phase("loaded")
        prompt = prompt_ids(session, payload["prompt_tokens"])
        warmup = repetition(session, prompt, payload["decode_tokens"])
        phase("warmed_up")
        progress(1.0)
        timed = []
        for _ in range(payload["repetitions"]):
            timed.append(repetition(session, prompt, payload["decode_tokens"]))
            progress(1.0)
        phase("finished")
        return {
            "import_s": import_s,
            "load_s": load_s,
            "first_answer_s": warmup.ttft_s,
            "ttft_s": [r.ttft_s for r in timed],
            "steps_s": [r.steps_s for r in timed],
            "resident_before_load": resident,
            "phases": phases,
            "high_water": high_water("self"),
            "version": runtime.version(),
            "build": session.build_info(),
            "threads_in_use": session.threads_in_use(),
        }
    finally:
        session.close()
