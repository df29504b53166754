"""The types that lose least within a number of bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from gguf.constants import GGMLQuantizationType

from edgeadapt.allocation.knapsack import Option, choose
from edgeadapt.allocation.matrices import Matrix
from edgeadapt.allocation.sensitivity import Sensitivity

_ROUNDS = 12


def assign(
    matrices: Sequence[Matrix], sensitivity: Sensitivity, budget: int
) -> dict[str, GGMLQuantizationType] | None:
    """A type for each matrix, by name; None if the smallest types exceed the budget.

    What independent errors cost adds up, and a knapsack finds the least of it. What is lost of the
    adapter does not: the losses of all matrices point the same way, so each costs the more the
    more is lost elsewhere. So the knapsack is solved again and again, each matrix priced as if the
    others stayed as they are, moving half way each time, and the best solution is kept.

    Args:
        matrices: what to store.
        sensitivity: what each type does to each.
        budget: bytes for the matrices, padding included.
    """
    names = [matrix.name for matrix in matrices]
    kl = [[sensitivity.prices[m.name][kind].kl for kind in m.types] for m in matrices]
    lost = [[1 - sensitivity.prices[m.name][kind].kept for kind in m.types] for m in matrices]
    sizes = [[m.nbytes(kind) for kind in m.types] for m in matrices]
    width = max((len(pull) for pull in sensitivity.pulls.values()), default=0)
    pulls = [sensitivity.pulls.get(name, np.zeros(width)) for name in names]
    share, total = np.zeros(len(matrices)), np.zeros(width)
    best: tuple[float, dict[str, GGMLQuantizationType]] | None = None
    for _ in range(_ROUNDS if sensitivity.pulls else 1):
        items = []
        for i, pull in enumerate(pulls):
            others = float((total - share[i] * pull) @ pull)
            own = float(pull @ pull) / 2
            items.append(
                [
                    Option(size, cost + s * others + s * s * own)
                    for size, cost, s in zip(sizes[i], kl[i], lost[i], strict=True)
                ]
            )
        taken = choose(items, budget)
        if taken is None:
            return None
        types = {m.name: m.types[k] for m, k in zip(matrices, taken, strict=True)}
        loss = sensitivity.loss(types)
        if best is None or loss < best[0]:
            best = loss, types
        share = (share + [lost[i][k] for i, k in enumerate(taken)]) / 2
        total = np.sum([s * pull for s, pull in zip(share, pulls, strict=True)], axis=0)
    assert best is not None
    return best[1]
