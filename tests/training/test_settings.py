from __future__ import annotations

from typing import get_args

import pytest

from edgeadapt.cli import train_
from edgeadapt.errors import InputError
from edgeadapt.training.methods import METHODS
from edgeadapt.training.settings import MethodName, parse_assignments, train_settings


def test_every_method_of_the_settings_is_in_the_table():
    assert {train_settings({"method": name}).method for name in METHODS} == set(METHODS)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rank": 4}, "'rank'"),
        ({"r": 0}, "'r': .*found 0"),
        ({"method": "magic"}, "'method': .*found 'magic'"),
        ({"learning_rate": "fast"}, "'learning_rate'"),
        ({"dropout": 1.0}, "'dropout'"),
    ],
)
def test_a_wrong_setting_is_named(values, said):
    with pytest.raises(InputError, match=said):
        train_settings(values)


def test_assignments():
    assert parse_assignments(("warmup=0.1", "target_modules=[q_proj]", "schedule=cosine")) == {
        "warmup": 0.1,
        "target_modules": ["q_proj"],
        "schedule": "cosine",
    }
    for wrong in ("warmup", "warmup=["):
        with pytest.raises(InputError, match="--set warmup"):
            parse_assignments((wrong,))


def test_every_place_that_lists_the_methods_lists_the_same() -> None:
    """The command line does without their module, which would slow down its start."""
    assert train_._METHODS == tuple(METHODS) == get_args(MethodName)
