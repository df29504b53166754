"""Types are chosen by what they cost together, within the size."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType as T

from edgeadapt.allocation.assign import assign
from edgeadapt.allocation.matrices import Matrix, find_matrices
from edgeadapt.allocation.prices import Price, draw_rows
from edgeadapt.allocation.sensitivity import Sensitivity
from edgeadapt.converters.gguf.imatrix import Imatrix
from edgeadapt.converters.gguf.plan import TensorPlan


def matrices(count: int = 4) -> list[Matrix]:
    found = find_matrices([TensorPlan(f"blk.{i}.attn_q.weight", (64, 64)) for i in range(count)])
    return [replace(matrix, types=(T.Q4_0, T.Q4_1, T.Q8_0)) for matrix in found]


def sensitivity(names: list[str], *, kept: float, pull: float) -> Sensitivity:
    prices = {
        name: {
            T.Q4_0: Price(0.02, 1.0),
            T.Q4_1: Price(0.0001, kept),
            T.Q8_0: Price(0.00005 * (i + 1), 1.0),
        }
        for i, name in enumerate(names)
    }
    pulls = {name: np.full(3, pull) for name in names}
    return Sensitivity(prices, pulls, Imatrix({}))


def test_names_roles_and_sizes() -> None:
    plans = [
        TensorPlan("token_embd.weight", (320, 64)),
        TensorPlan("blk.11.ffn_gate_exps.weight", (4, 96, 256)),
        TensorPlan("blk.11.attn_norm.weight", (64,)),
    ]
    embedding, experts = find_matrices(plans)
    assert (embedding.role, embedding.layer) == ("token_embd", None)
    assert (experts.role, experts.layer) == ("ffn_gate_exps", 11)
    assert T.Q4_K in experts.types
    assert T.Q4_K not in embedding.types
    assert embedding.nbytes(T.Q4_0) == 320 * 2 * 18


def test_a_type_that_erases_the_adapter_is_not_cheap() -> None:
    tensors = matrices()
    names = [m.name for m in tensors]
    room = sum(m.nbytes(T.Q4_1) for m in tensors)
    free = assign(tensors, sensitivity(names, kept=1.0, pull=1.0), room)
    assert free == dict.fromkeys(names, T.Q4_1)
    erased = assign(tensors, sensitivity(names, kept=0.2, pull=1.0), room)
    assert erased is not None
    assert T.Q4_1 not in erased.values()


@pytest.mark.parametrize("pull", [0.0, 0.02, 0.05, 0.1])
def test_as_good_as_trying_everything(pull: float) -> None:
    tensors = matrices()
    known = sensitivity([m.name for m in tensors], kept=0.4, pull=pull)
    room = sum(m.nbytes(T.Q4_1) for m in tensors) + 2000
    every = [
        {m.name: kind for m, kind in zip(tensors, kinds, strict=True)}
        for kinds in product((T.Q4_0, T.Q4_1, T.Q8_0), repeat=len(tensors))
        if sum(m.nbytes(k) for m, k in zip(tensors, kinds, strict=True)) <= room
    ]
    found = assign(tensors, known, room)
    assert found in every
    assert known.loss(found) <= 1.1 * min(known.loss(types) for types in every)


def test_too_little_room() -> None:
    tensors = matrices()
    known = sensitivity([m.name for m in tensors], kept=1.0, pull=0.0)
    least = sum(m.nbytes(T.Q4_0) for m in tensors)
    assert assign(tensors, known, least) == {m.name: T.Q4_0 for m in tensors}
    assert assign(tensors, known, least - 1) is None


def test_rows_stand_for_all_rows() -> None:
    random = np.random.default_rng(0)
    weights = random.exponential(1.0, 5000) ** 2
    values = random.uniform(0.5, 1.5, 5000)
    chosen, shares = draw_rows(weights, 400)
    assert shares.sum() == pytest.approx(weights.sum())
    assert (shares * values[chosen]).sum() == pytest.approx((weights * values).sum(), rel=0.05)
    assert len(np.unique(chosen)) == len(chosen)
    chosen, shares = draw_rows(weights, 9000)
    np.testing.assert_array_equal(chosen, np.arange(5000))
    np.testing.assert_array_equal(shares, weights)
    chosen, shares = draw_rows(np.zeros(50), 5)
    assert len(chosen) == 5
    assert not shares.any()
