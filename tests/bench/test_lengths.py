"""Decoding deep in the context and without a rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeadapt.bench.lengths import at_depth, kept, sustain, window_s
from edgeadapt.bench.protocol import prompt_ids
from edgeadapt.jobs import open_here


def test_a_depth_is_what_the_cache_holds(tiny_gguf: Path) -> None:
    session = open_here(tiny_gguf, context=64, threads=1)
    prompt = prompt_ids(session, 41)
    for depth in (0, 40):
        run = at_depth(session, prompt, depth, 5)
        assert len(run["steps_s"]) == 5
        assert session.position == depth + 5
    session.close()


def test_sustained_decoding_begins_again_when_the_context_is_full(tiny_gguf: Path) -> None:
    session = open_here(tiny_gguf, context=64, threads=1)
    prompt = prompt_ids(session, 50)
    ended: list[bool] = []
    found = sustain(session, prompt, 64, 2.5, lambda: ended.append(True))
    session.close()
    assert len(found["windows"]) == len(ended) >= 2
    assert len(found["readings"]) == len(ended) + 1
    for window in found["windows"]:
        assert window["tokens"] > 14  # more than fit between the prompt and the end of the context
        assert 0 < window["seconds"] < 2
    starts = [window["start_s"] for window in found["windows"]]
    assert starts == sorted(starts)


def test_windows_and_what_was_kept() -> None:
    assert window_s(600) == 30
    assert window_s(5) == 1
    assert window_s(100) == 5
    assert kept([10, 10, 9, 8, 8, 8, 5, 5]) == pytest.approx(0.5)
    assert kept([10, 5]) is None
