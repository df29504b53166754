"""Threads that compute are counted, those that wait are not; other programs are seen."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading

import pytest

from edgeadapt.bench.activity import activity, between

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counters of Linux")

BURN = "import hashlib\nwhile True: hashlib.sha256(bytes(1 << 20)).digest()"


def compute(rounds: int) -> None:
    for _ in range(rounds):
        hashlib.sha256(bytes(1 << 20)).digest()  # frees Python's lock meanwhile


@pytest.mark.parametrize("count", [1, 3])
def test_threads_that_compute_are_counted(count: int) -> None:
    idle = threading.Event()
    barrier = threading.Barrier(count + 1)
    waiting = threading.Thread(target=idle.wait)
    waiting.start()

    def work() -> None:
        barrier.wait()
        compute(100)
        barrier.wait()  # the kernel forgets the times of a thread that has ended
        idle.wait()

    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    before = activity()
    barrier.wait()
    barrier.wait()
    found = between(before, activity())
    idle.set()
    for thread in (*threads, waiting):
        thread.join()
    assert found.threads_running == count
    assert found.cores_used is not None
    assert 0 < found.cores_used <= count + 0.5


def test_another_program_is_seen() -> None:
    with subprocess.Popen([sys.executable, "-c", BURN]) as other:
        before = activity()
        compute(400)
        found = between(before, activity())
        other.kill()
    assert found.others is not None
    assert found.others > 0.1
    assert found.steal is not None


def test_no_time_is_no_figure() -> None:
    now = activity()
    assert between(now, now).threads_running is None
