"""The report as Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edgeadapt.report.tables import Table, all_tables, verdict


def render_markdown(document: dict[str, Any]) -> str:
    """The whole report."""
    return "\n".join(_lines(document)) + "\n"


def _lines(document: dict[str, Any]) -> Iterator[str]:
    yield f"# {document['name']}"
    yield ""
    for line in verdict(document):
        yield f"- {line}"
    for table in all_tables(document):
        yield ""
        yield from markdown_table(table)
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


def markdown_table(table: Table) -> Iterator[str]:
    """Lines of a table, with its title and note."""
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
