"""What computes on this machine, as Linux counts it: threads of this process, and everything else.

From proc(5): /proc/self/task/*/schedstat (nanoseconds on a CPU first) and /proc/stat.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

_BUSY_SHARE = 0.25
"""A thread that took this much of what the busiest one took computes with it; threads that an
engine only keeps, or Python's own, take next to nothing."""


@dataclass(frozen=True)
class Activity:
    """Counters at one moment."""

    wall_s: float
    own_s: float
    """CPU time of this process and what it started."""
    by_thread_s: dict[int, float]
    busy_s: float | None
    """CPU time of everything on the machine, ours included, idle time not."""
    steal_s: float | None
    cpus: int


@dataclass(frozen=True)
class Between:
    """What happened between two moments."""

    threads_running: int | None
    cores_used: float | None
    others: float | None
    """Share of all cores; see `measurement.Background`."""
    steal: float | None


def activity() -> Activity:
    """The counters now."""
    times = os.times()
    busy, steal = _machine_seconds()
    return Activity(
        wall_s=time.perf_counter(),
        own_s=times.user + times.system + times.children_user + times.children_system,
        by_thread_s=_seconds_by_thread(),
        busy_s=busy,
        steal_s=steal,
        cpus=os.cpu_count() or 1,
    )


def between(before: Activity, after: Activity) -> Between:
    """Differences of two moments' counters; null for what the system does not count."""
    wall = after.wall_s - before.wall_s
    if wall <= 0:
        return Between(None, None, None, None)
    own = after.own_s - before.own_s
    others = steal = None
    if before.busy_s is not None and after.busy_s is not None:
        others = max(after.busy_s - before.busy_s - own, 0.0) / (wall * after.cpus)
    if before.steal_s is not None and after.steal_s is not None:
        steal = max(after.steal_s - before.steal_s, 0.0) / (wall * after.cpus)
    return Between(_running(before.by_thread_s, after.by_thread_s), own / wall, others, steal)


def _running(before: dict[int, float], after: dict[int, float]) -> int | None:
    spent = [seconds - before.get(thread, 0.0) for thread, seconds in after.items()]
    most = max(spent, default=0.0)
    return sum(seconds >= _BUSY_SHARE * most for seconds in spent) if most > 0 else None


def _seconds_by_thread() -> dict[int, float]:
    found = {}
    try:
        for folder in Path("/proc/self/task").iterdir():
            words = (folder / "schedstat").read_text().split()
            found[int(folder.name)] = int(words[0]) / 1e9
    except (OSError, ValueError, IndexError):  # not Linux, or built without these counters
        return {}
    return found


def _machine_seconds() -> tuple[float | None, float | None]:
    """Seconds of CPU that were used, and that were stolen, over all cores since the start."""
    try:
        words = Path("/proc/stat").read_text().partition("\n")[0].split()
        # user nice system idle iowait irq softirq steal; guest time is in user already
        ticks = [int(word) for word in words[1:9]]
    except (OSError, ValueError):
        return None, None
    if len(ticks) < 8 or not any(ticks):
        return None, None
    second = os.sysconf("SC_CLK_TCK")
    return (sum(ticks[:3]) + sum(ticks[5:7])) / second, ticks[7] / second
