"""The report as one HTML file that loads nothing from anywhere."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from edgeadapt.extras import need
from edgeadapt.report.charts import charts
from edgeadapt.report.tables import STAGES, all_tables, verdict

_LAST = {STAGES}


def render_html(document: dict[str, Any]) -> str:
    """The whole report, self-contained.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    jinja2 = need("jinja2", "writing the HTML report")
    source = files("edgeadapt.report").joinpath("report.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    tables = all_tables(document)
    text: str = environment.from_string(source).render(
        document=document,
        verdict=verdict(document),
        passed=not document.get("failures"),
        charts=charts(document),
        tables=[table for table in tables if table.title not in _LAST],
        last=[table for table in tables if table.title in _LAST],
    )
    return text
