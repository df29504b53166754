"""The report as one HTML file that loads nothing from anywhere."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from edgeadapt.extras import need
from edgeadapt.report.tables import all_tables, verdict


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
    losses = (document["adapter"] or {}).get("losses") or []
    text: str = environment.from_string(source).render(
        document=document,
        verdict=verdict(document),
        tables=all_tables(document),
        curve=loss_curve(losses),
        losses=losses,
    )
    return text


def loss_curve(losses: list[float], width: int = 640, height: int = 160) -> str:
    """Points of an SVG polyline through the training losses, smoothed over five steps."""
    if len(losses) < 2:
        return ""
    smooth = [
        sum(window) / len(window)
        for window in (losses[max(0, i - 4) : i + 1] for i in range(len(losses)))
    ]
    low, high = min(smooth), max(smooth)
    span = (high - low) or 1.0
    return " ".join(
        f"{width * i / (len(smooth) - 1):.1f},{height * (high - value) / span:.1f}"
        for i, value in enumerate(smooth)
    )
