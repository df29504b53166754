"""The multiple-choice knapsack: one option for each item, least cost within a size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_CELLS = 1 << 16
"""Most sizes that are told apart; the table takes this times the number of items bytes."""


@dataclass(frozen=True)
class Option:
    """One way to treat an item."""

    size: int
    cost: float


def choose(items: Sequence[Sequence[Option]], budget: int) -> list[int] | None:
    """Index of the option to take for each item; None if even the smallest exceed the budget.

    Dynamic programming over sizes (H. Kellerer, U. Pferschy, D. Pisinger, Knapsack Problems, 2004,
    section 11.5). Sizes count above each item's smallest and in units of their greatest common
    divisor, as matrices of a few shapes have a large one; then the answer is the best there is.
    Where that would still make too many cells, sizes are rounded up to a coarser unit, and what
    the rounding left free goes to the best single changes.

    Args:
        items: the options of each item, at least one.
        budget: most that the sizes of the taken options may sum to.
    """
    least = [min(option.size for option in options) for options in items]
    room = budget - sum(least)
    if room < 0:
        return None
    extras = [
        [option.size - smallest for option in options]
        for options, smallest in zip(items, least, strict=True)
    ]
    room = min(room, sum(max(extra) for extra in extras))
    unit = math.gcd(*(size for extra in extras for size in extra)) or 1
    unit *= max(1, -(-(room // unit) // _CELLS))
    taken = _table(items, extras, room // unit, unit)
    return _fill(items, taken, budget)


def _table(
    items: Sequence[Sequence[Option]], extras: Sequence[Sequence[int]], cells: int, unit: int
) -> list[int]:
    """The best options where option k of item i takes ceil(extras[i][k] / unit) cells."""
    best = np.zeros(cells + 1)  # least cost of the items so far within each number of cells
    choices = []
    for options, extra in zip(items, extras, strict=True):
        lowest = np.full(cells + 1, np.inf)
        choice = np.zeros(cells + 1, dtype=np.uint8)
        for index, (option, size) in enumerate(zip(options, extra, strict=True)):
            width = -(-size // unit)
            if width > cells:
                continue
            cost = best[: cells + 1 - width] + option.cost
            better = cost < lowest[width:]
            lowest[width:][better] = cost[better]
            choice[width:][better] = index
        best = lowest
        choices.append(choice)
    taken, cell = [], cells
    for choice, extra in zip(reversed(choices), reversed(extras), strict=True):
        index = int(choice[cell])
        taken.append(index)
        cell -= -(-extra[index] // unit)
    return taken[::-1]


def _fill(items: Sequence[Sequence[Option]], taken: list[int], budget: int) -> list[int]:
    """Spend what is left on one change after another, the one that saves most first."""
    taken = list(taken)
    left = budget - sum(options[k].size for options, k in zip(items, taken, strict=True))
    while True:
        changes = [
            (options[taken[i]].cost - option.cost, i, k)
            for i, options in enumerate(items)
            for k, option in enumerate(options)
            if option.cost < options[taken[i]].cost and option.size - options[taken[i]].size <= left
        ]
        if not changes:
            return taken
        _, item, index = max(changes, key=lambda change: (change[0], -change[1], -change[2]))
        left -= items[item][index].size - items[item][taken[item]].size
        taken[item] = index
