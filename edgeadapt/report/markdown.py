"""The report as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from edgeadapt.report.tables import Table, all_tables, verdict


def render_markdown(document: dict[str, Any]) -> str:
    """The whole report."""
    return "\n".join(_lines(document)) + "\n"


def markdown_report(title: str, sentences: Sequence[str], tables: Sequence[Table]) -> Iterator[str]:
    """Lines of a report: its verdict and its tables."""
    yield f"# {title}"
    yield ""
    for line in sentences:
        yield f"- {line}"
    for table in tables:
        yield ""
        yield from _table(table)


def _lines(document: dict[str, Any]) -> Iterator[str]:
    yield from markdown_report(document["name"], verdict(document), all_tables(document))
    if document["samples"]:
        yield ""
        yield "## Sample answers"
        for sample in document["samples"]:
            yield ""
            yield f"**{sample['prompt']}**"
            yield ""
            for label, answer in sample["answers"].items():
                yield f"- *{label}*: {' '.join(answer.split())}"
    reasons = [
        (device, reason)
        for artifact in document["artifacts"]
        for device, reason in artifact["devices"].items()
    ]
    if reasons:
        yield ""
        yield "## Why these artifacts"
        yield ""
        for device, reason in reasons:
            yield f"- **{device}**: {reason}"


def _table(table: Table) -> Iterator[str]:
    yield f"## {table.title}"
    yield ""
    yield "| " + " | ".join(table.columns) + " |"
    yield "|" + "|".join(
        " ---: " if index in table.numeric else " --- " for index in range(len(table.columns))
    ) + "|"  # fmt: skip
    for row in table.rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
    if table.note:
        yield ""
        yield table.note
