from __future__ import annotations

import pytest

from edgeadapt.comparison.ground import grouped
from edgeadapt.data.examples import Example


def of(*groups: str | None) -> list[Example]:
    return [Example(prompt="a", completion="b", group=group) for group in groups]


@pytest.mark.parametrize(
    ("named", "numbers"),
    [
        (["os", "re", "os", "re"], [0, 1, 0, 1]),
        (["os", None, "os", None], [0, 1, 0, 2]),  # those without a name are groups of their own
        ([None, None], []),
        (["os", "re"], []),
        (["os"], []),
    ],
)
def test_questions_are_numbered_by_what_they_share(
    named: list[str | None], numbers: list[int]
) -> None:
    assert grouped(of(*named)) == numbers


def test_where_all_are_of_one_group_they_count_alone_and_it_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert grouped(of("os", "os", "os")) == []
    assert "all 3 questions are of the group os" in caplog.text
