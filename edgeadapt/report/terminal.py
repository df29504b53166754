"""The summary that `edgeadapt run` ends with."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from edgeadapt.report.tables import Table, all_tables, verdict


def summary(document: dict[str, Any], width: int = 80) -> str:
    """Verdict and tables as text of at most `width` columns."""
    shown = [table for table in all_tables(document) if not table.detail]
    return draw(shown, verdict(document), width)


def draw(tables: Sequence[Table], lines: Sequence[str], width: int = 80) -> str:
    """Tables, and sentences below them, as text of at most `width` columns."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable

    console = Console(file=io.StringIO(), width=width, no_color=True)
    for table in tables:
        drawn = RichTable(title=table.title, box=box.SIMPLE, title_justify="left", pad_edge=False)
        for index, column in enumerate(table.columns):
            drawn.add_column(column, justify="right" if index in table.numeric else "left")
        for row in table.rows:
            drawn.add_row(*row)
        console.print(drawn)
    for line in lines:
        console.print(line, markup=False, highlight=False)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines())
