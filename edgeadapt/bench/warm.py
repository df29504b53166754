"""The first token after a warm prompt, with its state and without: what the child does for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeadapt.runtimes.base import Session
from edgeadapt.warm.start import WarmStart, start_after


def ready(session: Session, payload: dict[str, Any]) -> tuple[WarmStart, float]:
    """Check the warm prompt of a job and take up its state; with the seconds that it took."""
    adapter = payload["adapter"]
    begun = time.perf_counter()
    start = start_after(
        session,
        Path(payload["warm"]),
        Path(payload["artifact"]),
        None if adapter is None else Path(adapter),
    )
    return start, time.perf_counter() - begun


def first_tokens(
    start: WarmStart, question: list[int], repetitions: int, on_pair: Callable[[], None]
) -> dict[str, Any]:
    """Both ways by turns, so that whatever else the machine does meets both alike.

    Args:
        start: a prompt with its state.
        question: tokens after it.
        repetitions: of each way; one more of each, not counted, warms up.
        on_pair: called after each pair.
    """
    session, prompt = start.session, list(start.prompt.ids)
    times: dict[str, list[float]] = {"ttft_s": [], "ttft_without_s": []}
    for _ in range(repetitions + 1):
        times["ttft_s"].append(_seconds(session, start.begin, question))
        times["ttft_without_s"].append(_seconds(session, session.reset, prompt + question))
        on_pair()
    return {
        "tokens": len(prompt),
        "question_tokens": len(question),
        "state_bytes": len(start.state),
        "state": start.origin,
        **{name: values[1:] for name, values in times.items()},
    }


def _seconds(session: Session, begin: Callable[[], None], ids: list[int]) -> float:
    """From the beginning of a conversation until its first token is known."""
    begun = time.perf_counter()
    begin()
    session.forward(ids)
    session.greedy()
    return time.perf_counter() - begun
