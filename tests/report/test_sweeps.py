"""The tables of what sweeps tried."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeadapt.report.comparison import comparison_tables, write_comparison
from edgeadapt.report.sweeps import sweep_tables
from tests.comparison.trials import document, plain, trial


def swept(seed: int) -> dict[str, Any]:
    found = trial("lora", seed=seed)
    found["training"]["sweep"] = {
        "tried": [
            {"values": {"learning_rate": 1e-2, "r": 8}, "losses": [[1, 3.0], [9, 1.25]],
             "ended": "done"},
            {"values": {"learning_rate": 1e-4, "r": 8}, "losses": [[1, 3.5]], "ended": "stopped"},
            {"values": {"learning_rate": 1e30, "r": 8}, "losses": [], "ended": "diverged"},
        ],
        "chosen": {"learning_rate": 1e-2, "r": 8},
        "validation_examples": 6,
        "seconds": 3.0,
    }  # fmt: skip
    return found


def test_each_combination_is_told_with_what_came_of_it() -> None:
    (table,) = sweep_tables([plain(), swept(0), trial("dora")])
    assert table.title == "Settings tried for lora"
    assert table.columns == ("learning_rate", "r", "Loss", "Steps", "")
    assert table.rows == (
        ("0.01", "8", "1.2500", "9", "taken"),
        ("0.0001", "8", "3.5000", "1", "stopped early"),
        ("1e+30", "8", "-", "-", "diverged"),
    )
    assert "put aside for it (6)" in table.note


def test_seeds_have_a_column_where_there_are_several() -> None:
    (table,) = sweep_tables([swept(0), swept(1)])
    assert table.columns[:2] == ("Seed", "learning_rate")
    assert [row[0] for row in table.rows] == ["0"] * 3 + ["1"] * 3
    assert [row[-1] for row in table.rows] == ["taken", "stopped early", "diverged"] * 2


def test_the_report_has_them(tmp_path: Path) -> None:
    found = document()
    assert not any("Settings tried" in table.title for table in comparison_tables(found))
    found["trials"] = [*found["trials"], swept(0)]
    write_comparison(found, tmp_path)
    for name in ("report.md", "report.html"):
        text = (tmp_path / name).read_text()
        assert "Settings tried for lora" in text and "stopped early" in text
