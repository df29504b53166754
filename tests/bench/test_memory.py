"""Watching the memory of a process from outside."""

from __future__ import annotations

import os
import sys
import time

import numpy as np
import pytest

from edgeadapt.bench import memory
from edgeadapt.bench.memory import Sampler, high_water

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")


def test_the_kernels_counters_say_the_same_as_a_walk_through_the_page_table() -> None:
    held = np.ones(64 << 20, np.uint8)  # 64 MiB, every page touched
    with Sampler() as sampler:
        sampler.start(os.getpid())
        while len(sampler.points) < 4:
            time.sleep(0.01)
    walked = [point for point in sampler.points if point.pss is not None]
    counted = [point for point in sampler.points if point.pss is None]
    assert walked
    assert counted
    assert counted[-1].anonymous > held.nbytes
    assert counted[-1].anonymous == pytest.approx(walked[0].anonymous, abs=8 << 20)
    assert counted[-1].file_backed == pytest.approx(walked[0].file_backed, abs=8 << 20)
    assert max(sampler.high_water) == pytest.approx(high_water("self"), rel=0.03)


def test_where_the_kernel_counts_little_psutil_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a sandbox whose /proc/PID/status has VmRSS alone."""
    monkeypatch.setattr(memory, "_status", lambda pid: {"VmRSS": 1000})
    monkeypatch.setattr(memory, "memory_point", lambda pid: None)
    with Sampler() as sampler:
        sampler.start(os.getpid())
        while not sampler.costs_s:
            time.sleep(0.01)
    assert sampler.points == [] and sampler.rss[0] > 1 << 20


def test_the_page_table_is_walked_rarely() -> None:
    with Sampler() as sampler:
        sampler.start(os.getpid())
        while len(sampler.costs_s) < 5:
            time.sleep(0.01)
    walks = sum(point.pss is not None for point in sampler.points)
    assert walks < len(sampler.costs_s)
