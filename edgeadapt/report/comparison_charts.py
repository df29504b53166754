"""The charts of `edgeadapt compare`: what a gain costs, method by method."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from edgeadapt.console import log
from edgeadapt.errors import MissingExtraError
from edgeadapt.extras import need
from edgeadapt.report.charts import INK, MARKERS, SERIES, Chart, draw_svg, legend, plain_ticks
from edgeadapt.report.tables import MIB

_LEGEND_WIDTH = 16
"""Characters of a name in a line of a legend of three columns."""
_DECADES = 100
"""Span of an axis from which only powers of ten are written at it."""


def comparison_charts(document: Mapping[str, Any]) -> list[Chart]:
    """Gain against time on each device, bytes of an update, and forgetting; none without
    matplotlib.
    """
    try:
        need("matplotlib", "drawing the report's charts")
    except MissingExtraError as error:
        log.warning("the report has no charts: %s", error)
        return []
    task = document["recipe"]["judged_by"] == "task"
    pareto = functools.partial(_pareto, "points of the metric" if task else "nats an answer token")
    gains = {one["name"]: one["ahead"] for one in document["contenders"]}
    found = []
    for device in document["devices"]:
        points = [
            (one["name"], one["answer_s"]["median"], gains[one["name"]])
            for one in device["contenders"]
        ]
        found.append(pareto(
            f"Gain against time on {device['title']}", points, "predicted seconds for an answer",
            "the best are at the top left",
        ))  # fmt: skip
    points = [
        (one["name"], max(one["bytes"]["update"], 1) / MIB, one["ahead"])
        for one in document["contenders"]
        if one["method"] != "none"
    ]
    if points:  # else every method failed
        found.append(pareto(
            "Gain against the bytes of an update", points, "MiB to ship for an update",
            "the best are at the top left",
        ))  # fmt: skip
    points = [
        (one["name"], one["forgetting"]["value"], one["ahead"]) for one in document["contenders"]
    ]
    found.append(pareto(
        "Gain against forgetting", points, "nats a token lost on general questions",
        "the best are at the top left", log_scale=False,
    ))  # fmt: skip
    return found


def _pareto(
    unit: str,
    title: str,
    points: Sequence[tuple[str, float, Mapping[str, float]]],
    label: str,
    best: str,
    *,
    log_scale: bool = True,
) -> Chart:
    def drawing(figure: Any) -> None:
        axes = figure.subplots()
        for index, (name, x, gain) in enumerate(points):
            axes.errorbar(
                [x], [gain["value"]],
                yerr=[[gain["value"] - gain["low"]], [gain["high"] - gain["value"]]],
                label=textwrap.fill(name, _LEGEND_WIDTH), color=SERIES[index % 6],
                marker=MARKERS[(index + index // 6) % 6],
                markersize=6, linewidth=1, linestyle="none", zorder=3,
            )  # fmt: skip
        axes.axhline(0, color=INK, linewidth=0.8, alpha=0.5)
        axes.set(xlabel=label, ylabel=f"gain, {unit}")
        if log_scale:
            axes.set_xscale("log")
            values = [x for _, x, _ in points]
            if max(values) < _DECADES * min(values):  # else there is no room for so many
                plain_ticks(axes.xaxis)
        legend(axes, 3)

    rows = -(-len(points) // 3)
    return Chart(
        title,
        draw_svg(drawing, title, 3.2 + 0.18 * rows),
        f"Gain over the plain base in {unit}, with its interval, against the {label}; {best}.",
    )
