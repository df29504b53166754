"""Reports as one HTML file that loads nothing from anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from edgeadapt.extras import need
from edgeadapt.report.charts import Chart, charts
from edgeadapt.report.tables import STAGES, Table, all_tables, verdict

_LAST = {STAGES}


@dataclass(frozen=True)
class Page:
    """What a report says, from top to bottom."""

    title: str
    subtitle: str
    verdict: Sequence[str]
    tables: Sequence[Table]
    charts: Sequence[Chart] = ()
    state: tuple[str, bool] | None = None
    """A few words in colour, and whether they are good ones."""
    samples: Sequence[Mapping[str, Any]] = ()
    """Each a `prompt` and its `answers` by who gave them."""
    reasons_title: str = ""
    reasons: Sequence[tuple[str, str]] = ()
    """What, and why."""
    last: Sequence[Table] = ()


def render_html(document: dict[str, Any]) -> str:
    """The whole report of a run, self-contained.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    tables, adapter = all_tables(document), document["adapter"]
    adapted = f", adapted by {adapter.get('method') or adapter['kind']}" if adapter else ""
    passed = not document.get("failures")
    return render_page(
        Page(
            title=document["name"],
            subtitle=f"Base {document['base']['name']}{adapted}, edgeadapt {document['edgeadapt']}",
            state=("Passed every gate" if passed else "Failed: see the gates", passed)
            if document["artifacts"]
            else None,
            verdict=verdict(document),
            charts=charts(document),
            tables=[table for table in tables if table.title not in _LAST],
            samples=document["samples"],
            reasons_title="Why these artifacts",
            reasons=[
                (device, reason)
                for artifact in document["artifacts"]
                for device, reason in artifact["devices"].items()
            ],
            last=[table for table in tables if table.title in _LAST],
        )
    )


def render_page(page: Page) -> str:
    """A report as HTML.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    jinja2 = need("jinja2", "writing the HTML report")
    source = files("edgeadapt.report").joinpath("report.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    text: str = environment.from_string(source).render(page=page)
    return text
