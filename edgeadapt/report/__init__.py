"""What a person reads after a run: a summary on the terminal, Markdown, and one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeadapt.files import write_texts
from edgeadapt.report.html import render_html
from edgeadapt.report.markdown import render_markdown
from edgeadapt.report.terminal import summary

__all__ = ["summary", "write_reports"]


def write_reports(document: dict[str, Any], root: Path) -> None:
    """Write `report.md` and `report.html` into the run's folder.

    Args:
        document: what `run.json` says.
        root: the run's folder.
    """
    write_texts(
        root, {"report.md": render_markdown(document), "report.html": render_html(document)}
    )
