"""Memory of a process, split into its own and file-backed pages.

On Linux from /proc/<pid>/smaps_rollup and /proc/<pid>/status, described in the kernel's
Documentation/filesystems/proc.rst; elsewhere only the resident set that psutil gives. The first
walks the page table and takes milliseconds for a mapped model, in which one thread of the measured
process does not run and the others wait for it; the second reads counters. Only the first has PSS.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

_INTERVAL_S = 0.1
_MOST_SHARE = 0.001
"""Of one core, for either file: what takes longer to read is read more rarely."""


@dataclass(frozen=True)
class MemoryPoint:
    """Resident memory of the process at one moment, in bytes."""

    anonymous: int
    """Heap, KV cache, compute buffers, repacked weights: the process's own."""
    file_backed: int
    """Memory-mapped weights and libraries: the system can drop and read them again."""
    pss: int | None
    """Shared pages divided by the number of processes that share them; null where it was not
    read."""

    @property
    def rss(self) -> int:
        """Everything resident."""
        return self.anonymous + self.file_backed


def _kib_fields(text: str) -> dict[str, int]:
    """`Name:  123 kB` lines as bytes."""
    fields = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB" and words[0].isdigit():
            fields[name] = int(words[0]) * 1024
    return fields


def memory_point(pid: int | str) -> MemoryPoint | None:
    """Memory of a process now; None where the system does not tell, or when it has ended.

    Args:
        pid: process id, or `self`.
    """
    try:
        fields = _kib_fields(Path(f"/proc/{pid}/smaps_rollup").read_text())
    except OSError:
        return None
    if "Rss" not in fields or "Anonymous" not in fields:  # ended: the file is empty
        return None
    anonymous = fields["Anonymous"]
    return MemoryPoint(
        anonymous=anonymous, file_backed=fields["Rss"] - anonymous, pss=fields.get("Pss")
    )


def high_water(pid: int | str) -> int | None:
    """The kernel's record of the most resident memory of a process (VmHWM), in bytes."""
    return _status(pid).get("VmHWM")


def _status(pid: int | str) -> dict[str, int]:
    try:
        return _kib_fields(Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return {}


def _counted(fields: dict[str, int]) -> MemoryPoint | None:
    """As `memory_point`, from the kernel's counters and without PSS."""
    if "RssAnon" not in fields:  # ended
        return None
    file_backed = fields["RssFile"] + fields["RssShmem"]
    return MemoryPoint(anonymous=fields["RssAnon"], file_backed=file_backed, pss=None)


class Sampler:
    """Watches a process from outside, in a thread, until stopped."""

    def __init__(self) -> None:
        self.points: list[MemoryPoint] = []
        self.costs_s: list[float] = []
        """What taking each sample cost."""
        self.high_water: list[int] = []
        self.rss: list[int] = []
        """Where the system gives nothing better."""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, pid: int) -> None:
        """Begin to watch."""
        self._thread = threading.Thread(target=self._watch, args=(pid,), daemon=True)
        self._thread.start()

    def __enter__(self) -> Sampler:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self, pid: int) -> None:
        wait, walk_at = 0.0, 0.0
        while not self._stop.wait(wait):
            start = time.perf_counter()
            if start >= walk_at:
                self._add(memory_point(pid))
                walk_at = start + (time.perf_counter() - start) / _MOST_SHARE
            looked = time.perf_counter()
            self._look(pid)
            cost = time.perf_counter() - looked
            self.costs_s.append(cost)
            wait = max(_INTERVAL_S, cost / _MOST_SHARE)

    def _add(self, point: MemoryPoint | None) -> None:
        if point is not None:
            self.points.append(point)

    def _look(self, pid: int) -> None:
        fields = _status(pid)
        point, mark = _counted(fields), fields.get("VmHWM")
        self._add(point)
        if mark is not None:
            self.high_water.append(mark)
        if point is None and mark is None and (rss := _psutil_rss(pid)) is not None:
            self.rss.append(rss)


def _psutil_rss(pid: int) -> int | None:
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None
