from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from edgeadapt.comparison.statistics import LEVEL, interval


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    """200 samples of 40 questions with a mean of 0.3: near 95% of intervals hold it."""
    random = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        found = interval(random.normal(0.3, 1.0, (1, 40)), np.ones(40))
        held += found.low <= 0.3 <= found.high
    assert LEVEL - 0.06 <= held / 200 <= 1.0


def test_questions_count_by_their_tokens() -> None:
    values, tokens = np.array([[10.0, 0.0]]), np.array([10.0, 30.0])
    assert interval(values, tokens).value == pytest.approx(0.25)


def test_several_seeds_widen_the_interval_by_their_spread() -> None:
    """What differs between seeds and not between questions shows only with several seeds."""
    one = np.full((1, 50), 0.5)
    several = np.array([[0.1] * 50, [0.5] * 50, [0.9] * 50])
    assert interval(one, np.ones(50)).high - interval(one, np.ones(50)).low == pytest.approx(0)
    spread = interval(several, np.ones(50))
    assert spread.value == pytest.approx(0.5)
    assert spread.high - spread.low > 0.4


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_few_seeds_hold_the_truth_as_often_too(seeds: int) -> None:
    """Each seed shifts all questions by as much as questions differ."""
    random = np.random.default_rng(2)
    held = 0
    for _ in range(200):
        values = 0.3 + random.normal(0, 0.3, (seeds, 1)) + random.normal(0, 0.3, (1, 64))
        found = interval(values, np.ones(64))
        held += found.low <= 0.3 <= found.high
    assert held / 200 >= LEVEL - 0.06


@pytest.mark.parametrize(("seeds", "among"), [(2, 1), (2, 10), (3, 1), (3, 10)])
def test_what_seeds_alone_change_is_students_t(seeds: int, among: int) -> None:
    """Of values that are the same for all questions, the interval is known."""
    scores = np.random.default_rng(4).normal(size=seeds)
    found = interval(np.repeat(scores[:, None], 64, axis=1), np.ones(64), among=among)
    wide = stats.t.isf(0.025 / among, seeds - 1) * scores.std(ddof=1) / math.sqrt(seeds)
    for end in (found.value - found.low, found.high - found.value):
        assert 0.95 * wide < end < 3 * wide


def test_questions_of_a_group_hold_the_truth_as_often_too() -> None:
    """Those of a group differ together by as much as each alone; as if independent, 71% hold it."""
    random = np.random.default_rng(5)
    held = 0
    for _ in range(200):
        groups = np.sort(np.append(random.integers(0, 17, 47), np.arange(17)))
        values = 0.3 + random.normal(0, 1, 17)[groups] + random.normal(0, 1, 64)
        found = interval(values[None], np.ones(64), groups=groups.tolist())
        held += found.low <= 0.3 <= found.high
    assert held / 200 >= LEVEL - 0.06


def test_a_group_counts_as_one_question_of_all_its_tokens() -> None:
    values, tokens = np.array([[1.0, 2.0, 3.0, 4.0]]), np.array([1.0, 2.0, 3.0, 4.0])
    together = interval(values, tokens, groups=[0, 0, 1, 2])
    assert together == interval(np.array([[3.0, 3.0, 4.0]]), np.array([3.0, 3.0, 4.0]))
    assert interval(values, tokens, groups=[0, 1, 2, 3]) == interval(values, tokens)


@pytest.mark.parametrize("count", [6, 10])
def test_few_questions_hold_the_truth_as_often_too(count: int) -> None:
    random = np.random.default_rng(6)
    held = 0
    for _ in range(200):
        found = interval(random.normal(0.3, 1.0, (1, count)), np.ones(count))
        held += found.low <= 0.3 <= found.high
    assert held / 200 >= LEVEL - 0.06


def test_intervals_among_many_are_wider() -> None:
    values = np.random.default_rng(0).normal(size=(1, 40))
    one, ten = (interval(values, np.ones(40), among=among) for among in (1, 10))
    assert ten.low < one.low < one.high < ten.high


def test_no_other_draws_would_take_back_what_these_decide() -> None:
    """Its ends lie beyond those of other draws."""
    values = np.random.default_rng(3).normal(size=(1, 64))
    found = interval(values, np.ones(64))
    for seed in range(1, 9):
        chosen = np.random.default_rng(seed).multinomial(64, np.full(64, 1 / 64), 20_000)
        ends = np.quantile(chosen @ values[0] / 64, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        assert found.low < ends[0] and ends[1] < found.high


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=30), st.floats(0.1, 3))
def test_an_interval_holds_its_value_and_turns_with_the_sign(
    values: list[float], scale: float
) -> None:
    array, ones = np.array([values]), np.ones(len(values))
    found, turned = interval(array, ones), interval(-scale * array, ones)
    assert found.low <= found.value + 1e-9 and found.value <= found.high + 1e-9
    assert turned.value == pytest.approx(-scale * found.value)
    assert turned.decided == found.decided


def test_the_same_figures_give_the_same_interval() -> None:
    values = np.random.default_rng(0).normal(size=(2, 30))
    assert interval(values, np.ones(30)) == interval(values, np.ones(30))
