"""A run's figures as charts: SVG drawn by matplotlib, in the colours of the page around it.

Series differ in shape or dash as well as in colour (Okabe and Ito's palette), so that they are told
apart by colour-blind people and in print.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeadapt.console import log
from edgeadapt.errors import MissingExtraError
from edgeadapt.extras import need

MIB = 2**20
_INCHES = (4.6, 3.2)
INK = "#010203"
"""Stands for the page's text colour."""
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS, _DASHES = "osD^vP", ("-", "--", "-.", ":", (0, (5, 1, 1, 1)), (0, (1, 2)))
_SMOOTHED = 5
"""Steps that a point of the training curve is the mean of."""


@dataclass(frozen=True)
class Chart:
    """A picture and what to say under it."""

    title: str
    svg: str
    """An `<svg>` element whose colours are `currentColor` and the variables --c0, --c1, ..."""
    caption: str


def charts(document: Mapping[str, Any]) -> list[Chart]:
    """Every chart that the run has figures for; none, with a warning, without matplotlib."""
    try:
        need("matplotlib", "drawing the report's charts")
    except MissingExtraError as error:
        log.warning("the report has no charts: %s", error)
        return []
    made = (
        *(_quality(document, *axis) for axis in _COSTS),
        _predicted(document),
        _training(document),
        _layers(document),
    )
    return [chart for chart in made if chart is not None]


Point = tuple[str, str, float, float]
"""Runtime, label, x and y."""

_COSTS: tuple[tuple[str, str, Callable[[Mapping[str, Any]], float | None]], ...] = (
    ("size", "size of the artifact, MiB", lambda m: m["artifact"]["size_bytes"] / MIB),
    ("speed", "decoded tokens a second", lambda m: m["decode_tps"]["median"]),
    (
        "memory",
        "memory of its own, MiB",
        lambda m: (
            None if m["memory"]["peak_anonymous"] is None else m["memory"]["peak_anonymous"] / MIB
        ),
    ),
)


def _quality(
    document: Mapping[str, Any],
    name: str,
    label: str,
    cost: Callable[[Mapping[str, Any]], float | None],
) -> Chart | None:
    divergence = {
        (artifact["sha256"], runtime): judged["fidelity"]["mean_kl"]["value"]
        for artifact in document["artifacts"]
        for runtime, judged in artifact["fidelity"].items()
    }
    points: list[Point] = []
    for m in document["measurements"]:
        key = m["artifact"]["sha256"], m["runtime"]["name"]
        x = cost(m)
        if key in divergence and x is not None and divergence[key] > 0:
            points.append((key[1], m["artifact"]["quantization"], x, divergence[key]))
    if len(points) < 2:
        return None
    better = "right" if name == "speed" else "left"
    return Chart(
        f"Quality against {name}",
        draw_svg(
            lambda figure: _scatter(figure, points, label), f"Mean KL divergence against {name}"
        ),
        f"Mean KL divergence from the merged model in nats (lower is better) against the {label}; "
        f"the best are at the bottom {better}.",
    )


def _scatter(figure: Any, points: Sequence[Point], label: str) -> None:
    axes = figure.subplots()
    runtimes = list(dict.fromkeys(point[0] for point in points))
    for index, runtime in enumerate(runtimes):
        mine = [point for point in points if point[0] == runtime]
        axes.scatter(
            [point[2] for point in mine], [point[3] for point in mine], label=runtime, s=36,
            color=SERIES[index % 6], marker=MARKERS[index % 6], zorder=3,
        )  # fmt: skip
    for (text, x, y), _ in {(p[1], round(p[2], 1), p[3]): None for p in points}.items():
        axes.annotate(
            text, (x, y), xytext=(0, 6), textcoords="offset points", ha="center", color=INK
        )
    axes.set(xlabel=label, ylabel="mean KL, nats", yscale="log")
    axes.margins(x=0.18, y=0.2)
    if len(runtimes) > 1:
        legend(axes, len(runtimes))


def _predicted(document: Mapping[str, Any]) -> Chart | None:
    told = document.get("predictions") or []
    if not told:
        return None
    speeds = {
        (m["artifact"]["quantization"], m["runtime"]["name"]): m["decode_tps"]["median"]
        for m in document["measurements"]
    }
    rows = [
        (
            f"{p['quantization']}, {p['runtime']}",
            "here" if p["measured"] else p["device"],
            p["decode_tps"],
            speeds.get((p["quantization"], p["runtime"])) if p["measured"] else None,
        )
        for p in told
    ]
    height = 1.3 + 0.36 * len(rows)
    svg = draw_svg(
        lambda figure: _intervals(figure, rows), "Predicted and measured decode speed", height
    )
    return Chart(
        "Prediction and measurement",
        svg,
        "Decoded tokens a second: the bar holds four cases of five, the circle is what was "
        "measured on this machine.",
    )


def _intervals(
    figure: Any, rows: Sequence[tuple[str, str, Mapping[str, float], float | None]]
) -> None:
    axes = figure.subplots()
    for index, (_, _, bounds, found) in enumerate(rows):
        axes.plot(
            [bounds["low"], bounds["high"]], [index, index], color=SERIES[0], linewidth=5,
            solid_capstyle="butt", alpha=0.55, label="predicted, 80%" if index == 0 else None,
        )  # fmt: skip
        axes.plot([bounds["median"]], [index], "|", color=INK, markersize=9, markeredgewidth=1.5)
        if found is not None:
            axes.plot([found], [index], "o", color=SERIES[1], zorder=4)
    if any(found is not None for *_, found in rows):
        axes.plot([], [], "o", color=SERIES[1], label="measured")
    axes.set(xlabel="decoded tokens a second", xscale="log")
    axes.set_yticks(range(len(rows)), [f"{where}\n{what}" for what, where, *_ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    plain_ticks(axes.xaxis)
    legend(axes, 2)


def _training(document: Mapping[str, Any]) -> Chart | None:
    losses = (document["adapter"] or {}).get("losses") or []
    if len(losses) < 2:
        return None
    smooth = [
        sum(window) / len(window)
        for window in (losses[max(0, i - _SMOOTHED + 1) : i + 1] for i in range(len(losses)))
    ]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        steps = range(1, len(losses) + 1)
        axes.plot(steps, losses, color=SERIES[0], linewidth=0.8, alpha=0.45, label="each step")
        axes.plot(steps, smooth, color=SERIES[0], linewidth=2, label=f"mean of {_SMOOTHED}")
        axes.set(xlabel="step", ylabel="training loss, nats a token")
        _whole_ticks(axes.xaxis)
        legend(axes, 2)

    return Chart(
        "Training",
        draw_svg(draw, "Training loss by step"),
        f"{len(losses)} steps, from {losses[0]:.2f} to {losses[-1]:.2f} nats a token.",
    )


def _layers(document: Mapping[str, Any]) -> Chart | None:
    errors = {
        artifact["quantization"]: layer_errors(artifact["weights"])
        for artifact in document["artifacts"]
        if artifact.get("weights")
    }
    errors = {name: found for name, found in errors.items() if len(found) > 1}
    if not errors:
        return None

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for index, (name, found) in enumerate(errors.items()):
            axes.plot(
                list(found), [100 * value for value in found.values()], label=name,
                color=SERIES[index % 6], linestyle=_DASHES[index % 6],
                marker=MARKERS[index % 6], markersize=3.5,
            )  # fmt: skip
        axes.set(xlabel="layer", ylabel="error of its weights, %")
        _whole_ticks(axes.xaxis)
        axes.set_ylim(bottom=0)
        legend(axes, 3)

    return Chart(
        "Quantization error by layer",
        draw_svg(draw, "Relative error of the weights of each layer"),
        "Root of the squared error of a layer's matrices over that of the weights themselves, "
        "against the merged float model; GGUF artifacts.",
    )


def layer_errors(weights: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Relative error of each layer's matrices, by its number: root of error over energy."""
    sums: dict[int, list[float]] = {}
    for tensor in weights:
        if tensor["layer"] is not None:
            total = sums.setdefault(tensor["layer"], [0.0, 0.0])
            total[0] += tensor["error"]
            total[1] += tensor["energy"]
    return {layer: (error / energy) ** 0.5 for layer, (error, energy) in sums.items() if energy}


def legend(axes: Any, columns: int) -> None:
    """Put the legend above the picture, where it hides nothing."""
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, frameon=False, labelcolor=INK,
        borderaxespad=0.2, handletextpad=0.5,
    )  # fmt: skip


def plain_ticks(axis: Any) -> None:
    """Numbers as people write them, a few a decade."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _whole_ticks(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))


def draw_svg(draw: Callable[[Any], None], label: str, height: float = _INCHES[1]) -> str:
    """One figure as an SVG element."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # hashsalt: ids in the SVG follow from the figures, so that the same run gives the same bytes.
    style: Any = {
        "svg.fonttype": "none", "svg.hashsalt": label, "font.size": 9, "font.family": "sans-serif",
        "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK,
        "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False,
        "axes.grid": True, "grid.color": INK, "grid.alpha": 0.12, "axes.axisbelow": True,
    }  # fmt: skip
    with mpl.rc_context(style):
        figure = Figure(figsize=(_INCHES[0], height), layout="constrained")
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _as_element(buffer.getvalue(), label)


def _as_element(text: str, label: str) -> str:
    """matplotlib's file as an element of a page: its colours, a name, no size, no ids in vain."""
    text = text[text.index("<svg ") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    head, _, rest = text.partition(">")
    view = re.search(r'viewBox="[^"]*"', head)
    space = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    head = f'<svg {space} {view[0] if view else ""} role="img" aria-label="{label}"'
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', rest))
    prefix = re.sub(r"\W+", "-", label.lower())

    def keep(match: re.Match[str]) -> str:
        return f' id="{prefix}-{match[1]}"' if match[1] in used else ""

    rest = re.sub(r' id="([^"]+)"', keep, rest)
    rest = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", rest)
    for colour, name in _page_colours():
        rest = rest.replace(colour, name)
    return f"{head}>{rest}"


def _page_colours() -> Iterator[tuple[str, str]]:
    yield INK, "currentColor"
    for index, colour in enumerate(SERIES):
        yield colour, f"var(--c{index})"
