"""The report of `edgeadapt compare`: on the terminal, as Markdown and as one HTML file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeadapt.files import write_texts
from edgeadapt.report.comparison_charts import comparison_charts
from edgeadapt.report.html import Page, render_page
from edgeadapt.report.markdown import markdown_report
from edgeadapt.report.sweeps import sweep_tables
from edgeadapt.report.tables import MIB, Table
from edgeadapt.report.terminal import draw

Document = Mapping[str, Any]

_FEW = 10
"""Questions, or groups of them, below which intervals of 95% may hold too rarely: with 4 in 86% of
simulations where they are normally distributed, and in 77% where they are skewed."""


def write_comparison(document: Document, root: Path) -> None:
    """Write `report.md` and `report.html` into the comparison's folder."""
    lines = markdown_report(
        document["name"], recommendations(document), comparison_tables(document)
    )
    write_texts(root, {"report.md": "\n".join(lines) + "\n", "report.html": _html(document)})


def comparison_summary(document: Document, width: int = 80) -> str:
    """Recommendations and tables as text of at most `width` columns."""
    shown = [table for table in comparison_tables(document) if not table.detail]
    return draw(shown, recommendations(document), width)


def recommendations(document: Document) -> list[str]:
    """For each device what to take, and why."""
    lines = []
    for device in document["devices"]:
        choice = device["choice"]
        if choice is None:
            lines.append(f"{device['title']}: nothing that may be chosen fits its memory.")
            continue
        lost = choice["forgetting"]
        told = f"{device['title']}: {choice['reason']}."
        if choice["gain"]["low"] > 0:
            loses = "nothing that could be told, " if lost["low"] <= 0 <= lost["high"] else ""
            loses = "nothing, " if lost["high"] < 0 else loses
            told += f" On general questions it loses {loses}{_with_margin(lost)} nats a token."
        if choice["left_out"]:
            told += f" Left out for what they forget: {', '.join(choice['left_out'])}."
        lines.append(told)
    methods = [one for one in document["contenders"] if one["method"] != "none"]
    for verdict, words in (
        ("worse", "Worse than the plain base on the held-out questions"),
        ("undecided", "Not told from the plain base by these questions"),
    ):
        names = [one["name"] for one in methods if one["beside_base"] == verdict]
        if names:
            lines.append(f"{words}: {', '.join(names)}.")
    lines += [
        f"{one['label']} (seed {one['seed']}) failed: {one['failed']}."
        for one in document["failed"]
    ]
    by_task = document["recipe"]["judged_by"] == "task"
    asked = document["questions"]["task" if by_task else "domain"]
    groups = asked["groups"]
    if (groups or asked["examples"]) < _FEW:
        which = "questions of the task" if by_task else "held-out questions"
        setting = "evaluate.task.examples" if by_task else "evaluate.held_out_examples"
        lines.append(
            f"{groups} groups of {which} are too few for intervals to be trusted; hold out "
            f"questions of {_FEW} groups and more."
            if groups
            else f"{asked['examples']} {which} are too few for intervals to be trusted; give "
            f"{setting} of {_FEW} and more."
        )
    return lines


def comparison_tables(document: Document) -> list[Table]:
    """Every table, in reading order."""
    found = [_gains(document), _costs(document), _training(document)]
    found += [*sweep_tables(document["trials"]), _here(document)]
    for device in document["devices"]:
        found += [_on_device(document, device), _break_even(document, device)]
    return [table for table in found if table.rows]


def _gains(document: Document) -> Table:
    tasks = any(one["task"] for one in document["contenders"])
    rows = []
    for one in document["contenders"]:
        fidelity = one["fidelity"] or {}
        rows.append((
            one["name"],
            f"{one['perplexity']:.2f}",
            "-" if one["method"] == "none" else _with_margin(one["gain"], 2),
            *((_score(one["task"]),) if tasks else ()),
            "-" if one["method"] == "none" else _with_margin(one["forgetting"], 2),
            f"{100 * fidelity['effect']:.0f}%" if "effect" in fidelity else "-",
        ))  # fmt: skip
    asked = document["questions"]
    metric = next((one["task"]["metric"] for one in document["contenders"] if one["task"]), "")
    seeds = len(document["recipe"]["seeds"])
    return Table(
        "What each is good for",
        ("Method", "PPL", "Gain", *((metric,) if tasks else ()), "Forgets", "Kept"),
        tuple(rows),
        f"{asked['domain']['examples']} held-out questions "
        f"({asked['domain']['answer_tokens']} answer tokens) on the artifact's own runtime. Gain: "
        "nats an answer token over the plain base in the same quantization; forgets: nats lost on "
        f"{asked['general']['examples']} general questions; both with the "
        f"{100 * document['level']:.0f}% bootstrap interval over questions"
        + (f" and up to {seeds} seeds" if seeds > 1 else " (one seed: how much another one would "
           "change is not in it)")
        + f". {_independent(asked)} Forgetting is of likelihoods: it moves with "
        "the style of answers as well as with what is known. Kept: how far the artifact goes from "
        "the base to the method's own model in torch.",
        numeric=frozenset(range(1, 5 + tasks)),
    )  # fmt: skip


def _independent(asked: Mapping[str, Any]) -> str:
    told = [
        f"{questions['groups']} groups ({what})"
        for what, questions in (
            ("held-out", asked["domain"]),
            ("general", asked["general"]),
            ("task", asked.get("task") or {}),
        )
        if questions.get("groups")
    ]
    if not told:
        return "Questions count as independent of each other."
    return f"Those of one `group` in the data are drawn together: {', '.join(told)}."


def _score(task: Mapping[str, Any] | None) -> str:
    return "-" if task is None else _with_margin(task["score"], 2)


def _costs(document: Document) -> Table:
    counted = any(one["trained"] and one["trained"]["joules"] for one in document["contenders"])
    rows = []
    for one in document["contenders"]:
        trained, sizes = one["trained"] or {}, one["bytes"]
        rows.append((
            one["name"],
            _shown(trained.get("parameters"), _count),
            _shown(trained.get("share"), lambda share: f"{100 * share:.2g}%" if share < 0.995
                   else "100%"),
            "-" if one["method"] == "none" else _work(one),
            _shown(trained.get("peak_memory"), lambda peak: f"{peak / MIB:.0f}"),
            *((_shown(trained.get("joules"), lambda joules: f"{joules:.0f}"),) if counted else ()),
            _mib(sizes["first"]),
            _mib(sizes["update"]),
        ))  # fmt: skip
    energy = ("J",) if counted else ()
    return Table(
        "What each costs",
        ("Method", "Trained", "Share", "Work s", "Peak MiB", *energy, "First MiB", "Update MiB"),
        tuple(rows),
        "Trained parameters, and their share of the base's; seconds of training with its sweep, or "
        "of the search for a prompt, measured once (*: it was interrupted, and what was done twice "
        "counts twice); resident memory of training in a process of its own"
        f"{', and its energy' if counted else ''}; what to ship for the first installation, and "
        "when it is trained anew.",
        numeric=frozenset(range(1, 7 + counted)),
    )


def _training(document: Document) -> Table:
    rows = [
        (one["name"], str(one["trained"]["steps"]), f"{one['trained']['learning_rate']:g}")
        for one in document["contenders"]
        if one["trained"]
    ]
    return Table(
        "How each was trained",
        ("Method", "Steps", "Learning rate"),
        tuple(rows),
        "The recipe's settings, or what a sweep chose on the training data.",
        numeric=frozenset({1, 2}),
        detail=True,
    )


def _work(one: Mapping[str, Any]) -> str:
    if one["work_s"] is None:
        return "?"
    return f"{one['work_s']:.0f}{'*' if (one['trained'] or {}).get('resumed') else ''}"


def _shown(value: float | None, told: Callable[[Any], str]) -> str:
    return "-" if value is None else told(value)


def _here(document: Document) -> Table:
    rows = []
    for one in document["contenders"]:
        here = one["here"]
        memory = here["peak_anonymous"]
        rows.append((
            one["name"], f"{here['prompt_tokens']:.0f}", f"{1000 * here['ttft_s']:.0f}",
            f"{here['decode_tps']:.1f}", "-" if memory is None else f"{memory / MIB:.0f}",
        ))  # fmt: skip
    return Table(
        "Measured on this machine",
        ("Method", "Prompt tokens", "TTFT, ms", "Decode, tok/s", "Own memory, MiB"),
        tuple(rows),
        f"{document['machine']['cpu']}; medians of {document['recipe']['bench']['repetitions']} "
        "repetitions with a prompt of the mean length. A prompt that is the same for every "
        "question can be prefilled once (export --warm-prompt).",
        numeric=frozenset(range(1, 5)),
    )


def _on_device(document: Document, device: Document) -> Table:
    choice = device["choice"] or {}
    rows = []
    for one in device["contenders"]:
        taken = one["name"] == choice.get("name")
        marks = [word for word, holds in (
            ("taken", taken), ("Pareto", one["pareto"]), ("does not fit", not one["fits"]),
        ) if holds]  # fmt: skip
        rows.append((
            one["name"],
            _between(one["ttft_s"]), _between(one["answer_s"]),
            f"{one['memory_bytes'] / MIB:.0f}", ", ".join(marks) or "-",
        ))  # fmt: skip
    return Table(
        f"Predicted on {device['title']}",
        ("Method", "TTFT, s", "Answer, s", "MiB", ""),
        tuple(rows),
        "80% intervals, never a measurement; an answer is prefill and "
        f"{document['recipe']['evaluate']['answer_tokens']} tokens. Pareto: none is better in "
        "gain, time, memory or bytes of an update without being worse elsewhere.",
        numeric=frozenset({1, 2, 3}),
    )


def _break_even(document: Document, device: Document) -> Table:
    rows = []
    for other in device["break_even"]:
        ends = other["queries"] and [other["queries"][end] for end in ("low", "median", "high")]
        told = "?" if ends is None else _crossing(ends)
        rows.append((other["against"], told, _crossing([other["updates"]])))
    name = (device["choice"] or {}).get("name", "")
    return Table(
        f"When {name} costs less on {device['title']}, quality aside",
        ("Against", "Answers", "Updates"),
        tuple(rows),
        "In answers: the seconds of making it and those of each answer on this device, on a slower "
        "to a faster one than predicted. In updates: the bytes of the first installation and of "
        "each update. What is alike within 5% counts as equal. At once: it never costs more. After "
        "N: from then on it has cost less. Until N: up to then. Never: it always costs more.",
        numeric=frozenset({1, 2}),
        detail=True,
    )


def _crossing(found: Sequence[Mapping[str, Any]]) -> str:
    """`at once`, `never`, `after 3 to 7`, `until the first`; several of them where the ends of an
    interval differ.
    """
    told = []
    for when in dict.fromkeys(one["when"] for one in found):
        uses = [one["uses"] for one in found if one["when"] == when]
        if uses[0] is None:
            told.append(when)
            continue
        low, high = f"{min(uses):.0f}", f"{max(uses):.0f}"
        if high == "0":
            told.append("from the first" if when == "after" else "until the first")
            continue
        told.append(f"{when} {low}" if low == high else f"{when} {low} to {high}")
    return " or ".join(told)


def _between(bounds: Mapping[str, float]) -> str:
    low, high = (
        f"{value:.0f}" if value >= 10 else f"{value:.2g}"
        for value in (bounds["low"], bounds["high"])
    )
    return f"{low} to {high}"


def _with_margin(figure: Mapping[str, float], digits: int = 3) -> str:
    low, high = figure["low"], figure["high"]
    return f"{figure['value']:.{digits}f} ({low:.{digits}f}, {high:.{digits}f})"


def _count(value: int) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.2f}{letter}"
    return str(value)


def _mib(value: int) -> str:
    return f"{value / MIB:.1f}" if value >= MIB / 10 else f"{value / MIB:.3f}"


def _html(document: Document) -> str:
    recipe, base = document["recipe"], document["base"]
    return render_page(
        Page(
            title=document["name"],
            subtitle=f"Methods compared on {base['name']}, {', '.join(recipe['quantizations'])}, "
            f"edgeadapt {document['edgeadapt']}",
            verdict=recommendations(document),
            charts=comparison_charts(document),
            tables=comparison_tables(document),
        )
    )
