"""What is measured of a contender."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from edgeadapt.comparison.measure import _check_finite
from edgeadapt.errors import RuntimeFailure


@pytest.mark.parametrize("what", ["domain", "general"])
def test_answers_without_a_likelihood_are_a_failure(what: str) -> None:
    subject: Any = SimpleNamespace(name="dora-Q2_K")
    figures = {"domain": {"nll": [1.0, 2.0]}, "general": {"nll": [3.0]}}
    _check_finite(subject, figures)
    figures[what]["nll"][0] = float("nan")
    with pytest.raises(RuntimeFailure, match=f"dora-Q2_K gives 1 of . {what} answers"):
        _check_finite(subject, figures)
