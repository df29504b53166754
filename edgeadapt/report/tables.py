"""A run's figures as tables, the same for the terminal, Markdown and HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIB = 2**20
STAGES = "Stages"


@dataclass(frozen=True)
class Table:
    """Rows of text; numbers are formatted already."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    """How the figures were obtained."""
    numeric: frozenset[int] = frozenset()
    """Columns to align at the right."""
    detail: bool = False
    """For the report alone: a terminal shows the rest."""


def verdict(document: dict[str, Any]) -> list[str]:
    """The run in a few sentences, the most important first."""
    figures = document["perplexity"]
    lines = []
    if "base" in figures and figures.get("reduction") is not None:
        adapted = figures.get("live") or figures["merged"]
        subject = "Training took" if document["recipe"]["train"] else "The adapter takes"
        lines.append(
            f"{subject} held-out perplexity from {figures['base']['perplexity']:.1f} to "
            f"{adapted['perplexity']:.1f}, {100 * figures['reduction']:.0f}% lower."
        )
    merge = document.get("merge")
    if merge and merge["measured"]:
        lines.append(f"Merged onto the {merge['onto']} base: {merge['reason']}.")
    kept = [row for row in figures["artifacts"] if row["gain_kept"] is not None]
    for row in kept:
        lines.append(
            f"{row['quantization']} on {row['runtime']} keeps {100 * row['gain_kept']:.0f}% of "
            f"that gain (perplexity {row['perplexity']:.1f})."
        )
    lines += [f"Not good enough: {failure}." for failure in document.get("failures", ())]
    return lines


def all_tables(document: dict[str, Any]) -> list[Table]:
    """Every table of the report, in reading order."""
    return [
        table
        for table in (
            _artifacts(document),
            _perplexity(document),
            *fidelity_tables(document["artifacts"]),
            _gates(document),
            _parity(document),
            _predictions(document),
            _speed(document),
            _memory(document),
            _stages(document),
        )
        if table.rows
    ]


def _artifacts(document: dict[str, Any]) -> Table:
    rows = [
        (
            Path(artifact["path"]).name,
            artifact["format"],
            artifact["quantization"],
            f"{artifact['bytes'] / MIB:.1f}",
            ", ".join(artifact["devices"]) or "-",
        )
        for artifact in document["artifacts"]
    ]
    return Table(
        "Artifacts",
        ("Artifact", "Format", "Quantization", "MiB", "For"),
        tuple(rows),
        numeric=frozenset({3}),
    )


_STATES = {
    "base": ("base, float32", "torch"),
    "trained_base": ("base as trained on", "torch"),
    "live": ("adapter, live", "torch"),
    "merged": ("merged, float32", "torch"),
}


def _perplexity(document: dict[str, Any]) -> Table:
    figures = document["perplexity"]
    rows = [
        (label, engine, f"{figures[key]['perplexity']:.2f}", "-")
        for key, (label, engine) in _STATES.items()
        if key in figures
    ]
    rows += [
        (
            row["quantization"],
            row["runtime"],
            f"{row['perplexity']:.2f}",
            "-" if row["gain_kept"] is None else f"{100 * row['gain_kept']:.1f}%",
        )
        for row in figures["artifacts"]
    ]
    base = figures.get("base", {})
    return Table(
        "Held-out perplexity",
        ("Model", "Engine", "Perplexity", "Gain kept"),
        tuple(rows),
        f"{base.get('examples', 0)} held-out examples, {base.get('tokens', 0)} scored tokens, the "
        "same for every row. Gain kept: share of the drop in log perplexity from the float base "
        "to the merged float model.",
        frozenset({2, 3}),
    )


def fidelity_tables(artifacts: Sequence[Mapping[str, Any]]) -> list[Table]:
    """How far each artifact is from the merged model, what is left of the adapter, and the task.

    Args:
        artifacts: each with `quantization` and, by runtime, the figures in `fidelity`.
    """
    judged = [
        (artifact["quantization"], runtime, figures)
        for artifact in artifacts
        for runtime, figures in artifact.get("fidelity", {}).items()
    ]
    return [_fidelity(judged), _retention(judged), _task(judged)]


Judged = tuple[str, str, dict[str, Any]]
"""Quantization, runtime and figures."""


def _fidelity(judged: list[Judged]) -> Table:
    rows = []
    for quantization, runtime, figures in judged:
        fidelity = figures["fidelity"]
        rows.append(
            (
                quantization,
                runtime,
                _with_error(fidelity["perplexity_ratio"], 3),
                _with_error(fidelity["mean_kl"], 4),
                f"{fidelity['p99_kl']['value']:.2f}",
                f"{100 * fidelity['top1']['value']:.1f}%",
                ", ".join(figures["failed_gates"]) or "passed",
            )
        )
    return Table(
        "Fidelity to the merged model",
        ("Model", "Engine", "PPL ratio", "Mean KL", "p99 KL", "Top-1", "Gates"),
        tuple(rows),
        "Against the float model that the artifact was made from (the base, where there is no "
        "adapter), over the same held-out tokens: perplexity ratio, KL divergence in nats, and how "
        "often the most probable token is the same; with standard errors over examples.",
        frozenset({2, 3, 4, 5}),
    )


def _retention(judged: list[Judged]) -> Table:
    rows = []
    for quantization, runtime, figures in judged:
        kept = figures["retention"]
        if not kept:
            continue
        bits = kept["bits_kl"]
        rows.append(
            (
                quantization,
                runtime,
                _percent(kept["kl"]["float_base"]),
                _percent(kept["kl"]["quantized_base"]),
                _percent(kept["log_perplexity_gain"]["float_base"]),
                _percent(kept["effect"]["quantized_base"] or kept["effect"]["float_base"]),
                "-" if bits is None else f"{bits['value']:.3f}",
            )
        )
    return Table(
        "What is left of the adapter",
        ("Model", "Engine", "KL kept", "vs Q base", "Gain kept", "Effect", "Bits KL"),
        tuple(rows),
        "KL kept: 1 - KL(merged, artifact) / KL(merged, base); vs Q base: the same against the "
        "plain base in the artifact's quantization. Gain kept: share of the gain in log "
        "perplexity. Effect: how far the artifact went from the base to the merged model, apart "
        "from what the bits add; 100% is all of the adapter, 0% none. Bits KL: what the "
        "quantization costs the plain base, which is run over the beginning of the text alone.",
        frozenset({2, 3, 4, 5, 6}),
    )


def _task(judged: list[Judged]) -> Table:
    rows = [
        (quantization, runtime, task["metric"], _with_error(task, 3), str(task["examples"]))
        for quantization, runtime, figures in judged
        if (task := figures["task"])
    ]
    return Table(
        "Task",
        ("Model", "Engine", "Metric", "Mean", "Examples"),
        tuple(rows),
        "",
        frozenset({3, 4}),
    )


def _with_error(figure: dict[str, Any], digits: int) -> str:
    error = figure["standard_error"]
    more = "" if error is None else f" ±{error:.{digits}f}"
    return f"{figure['value']:.{digits}f}{more}"


def _percent(figure: dict[str, Any] | None) -> str:
    return "-" if figure is None else f"{100 * figure['value']:.0f}%"


def _gates(document: dict[str, Any]) -> Table:
    """Every verdict: a gate's figure and its limit."""
    rows = [
        (
            artifact["quantization"],
            runtime,
            gate["gate"],
            "-" if gate["figure"] is None else f"{gate['figure']:.4g}",
            "-" if isinstance(gate["limit"], bool) else f"{gate['limit']:.4g}",
            ("passed" if gate["passed"] else "FAILED") + (f": {gate['note']}" * bool(gate["note"])),
        )
        for artifact in document["artifacts"]
        for runtime, judged in artifact.get("fidelity", {}).items()
        for gate in judged["gates"]
    ]
    return Table(
        "Gates",
        ("Model", "Engine", "Gate", "Figure", "Limit", "Verdict"),
        tuple(rows),
        "",
        frozenset({3, 4}),
        detail=True,
    )


def _parity(document: dict[str, Any]) -> Table:
    rows = []
    for artifact in document["artifacts"]:
        found = artifact.get("parity") or {}
        for runtime, mismatches in found.get("mismatches", {}).items():
            odd = found["engine_differences"].get(runtime, ())
            rows.append(
                (
                    artifact["quantization"], runtime, str(found["cases"]), str(len(mismatches)),
                    str(len(odd)) + (f": {odd[0]['message']}" if odd else ""),
                )
            )  # fmt: skip
    return Table(
        "Parity of text",
        ("Model", "Engine", "Texts", "Differ", "Limits of the engine"),
        tuple(rows),
        "Chats, odd Unicode, added tokens and the whole vocabulary, rendered and tokenized from "
        "the shipped files and compared with the original tokenizer. Limits of the engine: odd "
        "text that it treats otherwise with the original's files too.",
        frozenset({2, 3}),
        detail=True,
    )


def _predictions(document: dict[str, Any]) -> Table:
    measured = {
        (m["artifact"]["quantization"], m["runtime"]["name"]): m for m in document["measurements"]
    }
    rows = []
    for told in document.get("predictions", ()):
        found = measured.get((told["quantization"], told["runtime"])) if told["measured"] else None
        decode = told["decode_tps"]
        rows.append(
            (
                "here" if told["measured"] else told["device"],
                told["quantization"],
                told["runtime"],
                f"{decode['low']:.3g}-{decode['high']:.3g}",
                "-" if found is None else _within(found["decode_tps"]["median"], decode),
                f"{told['memory_bytes'] / MIB:.0f}",
                "-" if found is None else _mib(found["memory"]["peak_rss"]),
            )
        )
    return Table(
        "Prediction and measurement",
        ("On", "Model", "Engine", "Decode, 80%", "Measured", "MiB", "Peak"),
        tuple(rows),
        "Decoded tokens a second: the interval that should hold four cases of five, from physics "
        "and published measurements, and what was measured here (* outside the interval); other "
        "devices were not measured. MiB: predicted, of weights, KV cache and engine; peak: the "
        "largest resident memory of the measured process, interpreter included.",
        frozenset({3, 4, 5, 6}),
    )


def _within(value: float, bounds: dict[str, float]) -> str:
    inside = bounds["low"] <= value <= bounds["high"]
    return f"{value:.1f}" + ("" if inside else "*")


def _speed(document: dict[str, Any]) -> Table:
    rows = []
    for m in document["measurements"]:
        rows.append(
            (
                _label(m),
                m["runtime"]["name"],
                f"{m['load_s']:.2f}",
                f"{1000 * m['ttft_s']['median']:.0f}",
                f"{m['prefill_tps']['median']:.0f}",
                f"{m['decode_tps']['median']:.1f}",
                f"{m['decode_tps']['p5']:.0f}-{m['decode_tps']['p95']:.0f}",
            )
        )
    return Table(
        "Speed on this machine",
        ("Model", "Engine", "Load s", "TTFT ms", "Prefill", "Decode", "p5-p95"),
        tuple(rows),
        _how_measured(document),
        frozenset({2, 3, 4, 5, 6}),
    )


def _memory(document: dict[str, Any]) -> Table:
    rows = []
    for m in document["measurements"]:
        memory = m["memory"]
        rows.append(
            (
                _label(m),
                m["runtime"]["name"],
                _mib(memory["peak_rss"]),
                _mib(memory["peak_anonymous"]),
                _mib(memory["peak_file_backed"]),
            )
        )
    return Table(
        "Memory of the measured process",
        ("Model", "Engine", "Peak MiB", "Anonymous", "File-backed"),
        tuple(rows),
        "Resident memory, interpreter and libraries included; peaks of the two kinds may be of "
        "different moments. File-backed pages can be given back to the system and read again.",
        frozenset({2, 3, 4}),
    )


def _stages(document: dict[str, Any]) -> Table:
    rows = [
        (stage["folder"], f"{stage['seconds']:.1f}", "yes" if stage["reused"] else "no")
        for stage in document["stages"]
    ]
    return Table(
        STAGES,
        ("Folder", "Seconds", "Reused"),
        tuple(rows),
        "A reused stage shows the time that it took when it was made.",
        frozenset({1}),
        detail=True,
    )


def _label(measurement: dict[str, Any]) -> str:
    artifact = measurement["artifact"]
    return "base, float32" if artifact["format"] == "hf" else str(artifact["quantization"])


def _mib(value: int | None) -> str:
    return "-" if value is None else f"{value / MIB:.0f}"


def _how_measured(document: dict[str, Any]) -> str:
    if not document["measurements"]:
        return ""
    m = document["measurements"][0]
    machine, settings = m["machine"], m["settings"]
    return (
        f"{machine['cpu']}, {m['runtime']['threads_in_use']} threads; "
        f"{settings['prompt_tokens']} prompt and {settings['decode_tokens']} decode tokens, "
        f"medians of {settings['repetitions']} after a warm-up; page cache "
        f"{m['page_cache']['state']} at load. Prefill and decode in tokens per second; "
        "TTFT is the time to first token."
    )
