"""The knapsack against trying everything."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

import edgeadapt.allocation.knapsack as knapsack
from edgeadapt.allocation.knapsack import Option, choose

OPTIONS = st.builds(
    Option, st.integers(1, 40).map(lambda n: 7 * n), st.floats(0, 10, allow_nan=False)
)
ITEMS = st.lists(st.lists(OPTIONS, min_size=1, max_size=4), min_size=1, max_size=5)


def total(items: list[list[Option]], taken: tuple[int, ...] | list[int]) -> tuple[int, float]:
    options = [options[k] for options, k in zip(items, taken, strict=True)]
    return sum(o.size for o in options), sum(o.cost for o in options)


@given(ITEMS, st.integers(0, 1400))
def test_nothing_cheaper_fits(items: list[list[Option]], budget: int) -> None:
    every = [total(items, taken) for taken in product(*(range(len(o)) for o in items))]
    fitting = [cost for size, cost in every if size <= budget]
    taken = choose(items, budget)
    if taken is None:
        assert not fitting
        return
    size, cost = total(items, taken)
    assert size <= budget
    assert cost <= min(fitting) + 1e-9


@given(ITEMS, st.integers(0, 1400))
def test_a_coarse_table_still_fits_and_leaves_no_improvement(
    items: list[list[Option]], budget: int
) -> None:
    cells, knapsack._CELLS = knapsack._CELLS, 5
    try:
        taken = choose(items, budget)
    finally:
        knapsack._CELLS = cells
    if taken is None:
        assert sum(min(o.size for o in options) for options in items) > budget
        return
    size, _ = total(items, taken)
    assert size <= budget
    for i, options in enumerate(items):
        for option in options:
            fits = size - options[taken[i]].size + option.size <= budget
            assert not fits or option.cost >= options[taken[i]].cost - 1e-12


def test_same_input_same_answer() -> None:
    items = [[Option(10, 1.0), Option(20, 0.5), Option(20, 0.5)] for _ in range(6)]
    assert choose(items, 90) == choose(items, 90)
