from __future__ import annotations

from typing import Any

import pytest

from edgeadapt.report.comparison import _crossing


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ([("at once", None), ("at once", None)], "at once"),
        ([("after", 3.4), ("after", 7.1)], "after 3 to 7"),
        ([("after", 0.4), ("never", None)], "from the first or never"),
        ([("until", 0.1)], "until the first"),
        ([("until", 0.1), ("until", 2.0)], "until 0 to 2"),
    ],
)
def test_when_one_choice_begins_or_ends_to_cost_less(
    found: list[tuple[str, Any]], told: str
) -> None:
    assert _crossing([{"when": when, "uses": uses} for when, uses in found]) == told
