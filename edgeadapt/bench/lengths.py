"""Decoding deep in the context, and for long: what the child does beyond plain repetitions."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from edgeadapt.bench.heat import Heat, heat, throttling, watched
from edgeadapt.runtimes.base import Session

_WINDOWS = 20
_SHORTEST_S, _LONGEST_S = 1.0, 30.0


def decode_steps(session: Session, token: int, count: int) -> list[float]:
    """Seconds of each of `count` greedy steps, the first of them with `token`."""
    clock = time.perf_counter
    times = [clock()]
    for _ in range(count):
        session.forward([token])
        token = session.greedy()
        times.append(clock())
    return [after - before for before, after in itertools.pairwise(times)]


def at_depth(session: Session, prompt: list[int], depth: int, decode_tokens: int) -> dict[str, Any]:
    """One repetition with `depth` tokens in the KV cache before the first step.

    Args:
        session: any.
        prompt: at least `depth` tokens, and one.
        depth: 0 decodes from an empty cache.
        decode_tokens: steps.
    """
    session.reset()
    start = time.perf_counter()
    token = prompt[0]
    if depth:
        session.forward(prompt[:depth])
        token = session.greedy()
    fill_s = time.perf_counter() - start
    return {"fill_s": fill_s, "steps_s": decode_steps(session, token, decode_tokens)}


def sustain(
    session: Session,
    prompt: list[int],
    context: int,
    seconds: float,
    on_window: Callable[[], None],
) -> dict[str, Any]:
    """Decode without a rest, and look at the sensors between windows of time.

    When the context is full, the sequence begins again with the prompt; that prefill is not
    counted, and neither is looking at sensors.

    Args:
        session: any.
        prompt: shorter than the context.
        context: KV cache size in tokens.
        seconds: for how long.
        on_window: called after each window.
    """
    length = window_s(seconds)
    begun = time.perf_counter()
    readings, windows = [heat()], []
    while (start := time.perf_counter() - begun) < seconds:
        spent, tokens = _window(session, prompt, context, min(length, seconds - start))
        readings.append(heat())
        windows.append({"start_s": start, "seconds": spent, "tokens": tokens})
        on_window()
    return {"windows": windows, "readings": [asdict(reading) for reading in readings]}


def window_s(seconds: float) -> float:
    """Length of a window: a twentieth, between 1 and 30 seconds."""
    return min(max(seconds / _WINDOWS, _SHORTEST_S), _LONGEST_S)


def _window(session: Session, prompt: list[int], context: int, length: float) -> tuple[float, int]:
    """Seconds of decoding, and tokens decoded in them."""
    clock = time.perf_counter
    end = clock() + length
    spent, tokens = 0.0, 0
    while tokens == 0 or clock() < end:
        if session.position == session.start or session.position >= context:
            session.reset()
            session.forward(prompt)
        start = clock()
        token = session.greedy()
        while session.position < context:
            session.forward([token])
            token = session.greedy()
            tokens += 1
            if clock() >= end:
                break
        spent += clock() - start
    return spent, tokens


def summary(
    windows: Sequence[dict[str, Any]], readings: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The fields of `measurement.Sustained`."""
    seen = [Heat(**{**reading, "firmware": tuple(reading["firmware"])}) for reading in readings]
    found = [
        window
        | {
            "decode_tps": window["tokens"] / window["seconds"],
            "temperature_c": reading.temperature_c,
            "frequency_mhz": reading.frequency_mhz,
        }
        for window, reading in zip(windows, seen[1:], strict=True)
    ]
    return {
        "windows": found,
        "kept": kept([window["decode_tps"] for window in found]),
        "throttling": throttling(seen),
        "watched": watched(seen[0]),
    }


def kept(speeds: Sequence[float]) -> float | None:
    """Median of the last quarter over that of the first; None with fewer than four."""
    quarter = len(speeds) // 4
    if not quarter:
        return None
    return statistics.median(speeds[-quarter:]) / statistics.median(speeds[:quarter])
