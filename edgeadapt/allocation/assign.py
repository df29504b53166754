"""The types that lose least within a number of bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from gguf.constants import GGMLQuantizationType

from edgeadapt.allocation.knapsack import Option, choose
from edgeadapt.allocation.matrices import Matrix
from edgeadapt.allocation.sensitivity import Sensitivity

_ROUNDS = 10
_SWAPS = 200
"""Most improvements by swapping; some dozens are usual."""
_BLOCK = 256
"""Changes that are paired with all others at once."""


def assign(
    matrices: Sequence[Matrix], sensitivity: Sensitivity, budget: int
) -> dict[str, GGMLQuantizationType] | None:
    """A type for each matrix, by name; None if the smallest types exceed the budget.

    What independent errors cost adds up, and a knapsack finds the least of it. What is lost of the
    adapter does not: the losses of all matrices point the same way, so each costs the more the
    more is lost elsewhere. So the knapsack is solved again and again, each matrix priced as if the
    others stayed as they are, moving half way each time. The best solution is then improved by
    single changes and by swaps, one matrix up and another down, until none helps.

    Args:
        matrices: what to store.
        sensitivity: what each type does to each.
        budget: bytes for the matrices, padding included.
    """
    problem = _Problem(matrices, sensitivity)
    best: list[int] | None = None
    share = np.zeros(len(matrices))
    for _ in range(_ROUNDS if sensitivity.pulls else 1):
        taken = choose(problem.priced(share), budget)
        if taken is None:
            return None
        if best is None or problem.loss(taken) < problem.loss(best):
            best = taken
        share = (share + problem.lost_share(taken)) / 2
    assert best is not None
    if sensitivity.pulls:
        problem.improve(best, budget)
    return {matrix.name: matrix.types[k] for matrix, k in zip(matrices, best, strict=True)}


class _Problem:
    """Sizes and losses as arrays; every option of every matrix is one entry."""

    def __init__(self, matrices: Sequence[Matrix], sensitivity: Sensitivity) -> None:
        options = [
            (i, matrix.nbytes(kind), sensitivity.prices[matrix.name][kind])
            for i, matrix in enumerate(matrices)
            for kind in matrix.types
        ]
        self._item = np.array([i for i, _, _ in options])
        self._size = np.array([size for _, size, _ in options])
        self._kl = np.array([price.kl for _, _, price in options])
        self._lost = np.array([1 - price.kept for _, _, price in options])
        self._first = np.searchsorted(self._item, np.arange(len(matrices)))
        width = max((len(pull) for pull in sensitivity.pulls.values()), default=1)
        none = np.zeros(width)
        pulls = np.array([sensitivity.pulls.get(matrix.name, none) for matrix in matrices])
        self._gram = pulls @ pulls.T

    def lost_share(self, taken: Sequence[int]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """What each matrix loses of the adapter's change."""
        lost: np.ndarray[tuple[int], np.dtype[np.float64]] = self._lost[self._first + taken]
        return lost

    def loss(self, taken: Sequence[int]) -> float:
        """As `Sensitivity.loss`."""
        share = self.lost_share(taken)
        return float(self._kl[self._first + taken].sum() + share @ self._gram @ share / 2)

    def priced(self, share: np.ndarray[tuple[int], np.dtype[np.float64]]) -> list[list[Option]]:
        """Options for the knapsack, if all other matrices lose these shares."""
        own = np.diag(self._gram)
        others = self._gram @ share - own * share
        cost = self._kl + self._lost * others[self._item] + self._lost**2 / 2 * own[self._item]
        items: list[list[Option]] = [[] for _ in self._first]
        for item, size, value in zip(self._item, self._size, cost, strict=True):
            items[item].append(Option(int(size), float(value)))
        return items

    def improve(self, taken: list[int], budget: int) -> None:
        """Change one matrix, or two, while that lowers the loss within the budget; in place."""
        for _ in range(_SWAPS):
            now = self._first + taken
            current = now[self._item]
            size = self._size - self._size[current]
            lost = self._lost - self._lost[current]
            gain = self._kl - self._kl[current] + lost * (self._gram @ self._lost[now])[self._item]
            gain = gain + lost**2 / 2 * np.diag(self._gram)[self._item]
            room = budget - int(self._size[now].sum())
            saved, pair = 1e-12, None
            for start in range(0, len(gain), _BLOCK):
                part = slice(start, start + _BLOCK)
                both = self._gram[self._item[part]][:, self._item]
                both = both * lost[part, None] * lost + gain[part, None] + gain
                both[size[part, None] + size > room] = np.inf
                both[self._item[part, None] == self._item] = np.inf  # of one matrix: no swap
                least = int(both.argmin())
                if -both.flat[least] > saved:
                    saved = -float(both.flat[least])
                    pair = start + least // len(gain), least % len(gain)
            if pair is None:
                return
            for entry in pair:
                taken[self._item[entry]] = int(entry - self._first[self._item[entry]])
