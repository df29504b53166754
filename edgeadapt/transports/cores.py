"""Which CPU cores to run on, on a machine where some are faster than others."""

from __future__ import annotations

from collections.abc import Iterable

_MOST = 1024


def parse_cores(text: str) -> tuple[int, ...]:
    """Numbers of cores, of a text such as `4-7` or `0,4-5`.

    Raises:
        ValueError: it is no such list.
    """
    found: set[int] = set()
    for word in text.split(","):
        first, dash, last = word.strip().partition("-")
        if not first.isdecimal() or bool(dash) != last.isdecimal() or len(first + last) > 8:
            raise ValueError(f"{text!r} is not what was expected: cores such as 4-7 or 0,4-5")
        low, high = int(first), int(last or first)
        if not low <= high < _MOST:
            raise ValueError(f"{text!r}: there are no cores {word.strip()}")
        found.update(range(low, high + 1))
    return tuple(sorted(found))


def fastest(answer: str, count: int) -> tuple[int, ...]:
    """The `count` fastest cores; none where that is all, or where they do not differ.

    Args:
        answer: lines `core NUMBER SPEED`.
        count: how many are wanted; of equal ones those with the highest numbers, since small
            cores, and those that the system prefers for its own work, come first.
    """
    lines = [line.split() for line in answer.splitlines()]
    speeds = {int(w[1]): int(w[2]) for w in lines if w[:1] == ["core"] and len(w) == 3}
    if not 0 < count < len(speeds) or len(set(speeds.values())) == 1:
        return ()
    order = sorted(speeds, key=lambda core: (speeds[core], core))
    return tuple(sorted(order[-count:]))


def mask(cores: Iterable[int]) -> str:
    """For `taskset`: hexadecimal, as toybox's takes it, without 0x."""
    return f"{sum(1 << core for core in cores):x}"
