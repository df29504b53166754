"""How fast this machine's cores read memory, together."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeadapt.memory import available_memory

Array = npt.NDArray[np.float32]

_MIN_BYTES = 64 << 20
_MAX_BYTES = 512 << 20


@dataclass(frozen=True)
class ReadBandwidth:
    """Bytes read in a second, in 10^9."""

    one_thread: float
    best: float
    threads: int
    """With which the best was reached."""
    buffer_bytes: int


def measure_read_bandwidth(cores: int, *, passes: int = 5) -> ReadBandwidth:
    """Read a buffer far larger than caches, with 1, 2, 4, ... up to `cores` threads.

    A dot product of float32 with itself: one stream of reads, and arithmetic that vector units do
    faster than memory delivers. The best of `passes` counts, as others on the machine only ever
    slow it down. Takes a second or two, and at most an eighth of the free memory.
    """
    room = available_memory() // 8
    size = int(min(_MAX_BYTES, max(_MIN_BYTES, room)))
    data = np.full(size // 4, 1.0, dtype=np.float32)  # written, so that every page is real
    counts = sorted({min(cores, 1 << power) for power in range(8)} | {cores})
    rates = {count: _rate(data, count, passes) for count in counts}
    best = max(rates, key=rates.__getitem__)
    return ReadBandwidth(rates[1], rates[best], best, data.nbytes)


def _rate(data: Array, threads: int, passes: int) -> float:
    parts = np.array_split(data, threads)
    with ThreadPoolExecutor(threads) as pool:
        fastest = min(_pass_seconds(pool, parts) for _ in range(passes))
    return data.nbytes / fastest / 1e9


def _pass_seconds(pool: ThreadPoolExecutor, parts: list[Array]) -> float:
    start = time.perf_counter()
    list(pool.map(lambda part: np.dot(part, part), parts))
    return time.perf_counter() - start
