"""Measurements as a table that fits 80 columns, with a note on how they were taken."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from edgeadapt.bench.measurement import Distribution, Measurement

_MB = 1e6
_WIDTH = 80
_BUSY = 0.1
"""Share of the CPU used by others from which a run is called disturbed."""


def _spread(values: Distribution, scale: float = 1.0, digits: int = 1) -> str:
    """Median, and below it p5 to p95."""
    median, low, high = (f"{v * scale:.{digits}f}" for v in (values.median, values.p5, values.p95))
    return f"{median}\n{low}-{high}"


def _memory(measurement: Measurement) -> str:
    """Peak, and below it the process's own and the file-backed part."""
    memory = measurement.memory
    if memory.peak_rss is None:
        return "unknown"
    peak = f"{memory.peak_rss / _MB:.0f}"
    if memory.at_peak is None:
        return peak
    return f"{peak}\n{memory.at_peak.anonymous / _MB:.0f}+{memory.at_peak.file_backed / _MB:.0f}"


def _name(measurement: Measurement, measurements: Sequence[Measurement]) -> str:
    """The last part of the path; two parts where that is not enough to tell them apart."""
    parts = [m.artifact.path.rstrip("/").split("/") for m in measurements]
    mine = measurement.artifact.path.rstrip("/").split("/")
    alike = {tuple(p) for p in parts if p[-1] == mine[-1]}
    return "/".join(mine[-2:] if len(alike) > 1 else mine[-1:])


def render(measurements: Sequence[Measurement]) -> str:
    """The table and its notes, as text of at most the terminal's width (80 when piped)."""
    wide = sys.stdout.isatty()
    table = Table(box=SIMPLE_HEAD if wide else None, pad_edge=False, padding=(0, 1))
    table.add_column("artifact", overflow="fold", min_width=10)
    table.add_column("runtime", no_wrap=True)
    for title in (
        "load\ns",
        "1st token\nms",
        "prefill\ntok/s",
        "decode\ntok/s",
        "peak MB\nown+file",
    ):
        table.add_column(title, justify="right", no_wrap=True)
    for m in measurements:
        beside = f" + {m.settings.adapter}" if m.settings.adapter else ""
        table.add_row(
            f"{_name(m, measurements)}{beside}\n{m.artifact.quantization}, "
            f"{m.artifact.size_bytes / _MB:.0f} MB",
            f"{m.runtime.name}\n{m.page_cache.state}",
            f"{m.load_s:.2f}",
            _spread(m.ttft_s, 1e3, 0),
            _spread(m.prefill_tps, digits=0),
            _spread(m.decode_tps),
            _memory(m),
        )
    width = max(shutil.get_terminal_size((_WIDTH, 24)).columns, 60) if wide else _WIDTH
    buffer = io.StringIO()
    console = Console(file=buffer, width=width, color_system=None, highlight=False, markup=False)
    console.print(table)
    for note in notes(measurements):
        console.print(note, soft_wrap=False)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


def notes(measurements: Sequence[Measurement]) -> list[str]:
    """How the figures were taken: one line each, the same line only once."""
    lines = [line for m in measurements for line in _notes_on(m)]
    busy = max(m.machine.busy or 0.0 for m in measurements)
    if busy > _BUSY:
        lines.append(
            f"Other programs used {busy:.0%} of the CPU before a run: the speeds may be too low."
        )
    return list(dict.fromkeys(lines))


def _notes_on(m: Measurement) -> list[str]:
    s, machine, engine = m.settings, m.machine, m.runtime
    features = engine.build.get("features")
    lines = [
        f"Medians (below: p5-p95) over repetitions ({s.repetitions}) after a warm-up "
        f"({s.warmup_repetitions}): prompt tokens {s.prompt_tokens}, decode steps "
        f"{s.decode_tokens}.",
        f"{machine.cpu}: threads {engine.threads_in_use}, cores {machine.available_cores}, "
        f"{machine.memory_bytes / 2**30:.1f} GiB, {' '.join(machine.isa)}.",
        f"{engine.name} {engine.version}" + (f", built with {features}." if features else "."),
        _cache_note(m),
    ]
    if "before_load" in m.memory.phases:
        floor = m.memory.phases["before_load"].rss / _MB
        lines.append(f"{engine.name}: {floor:.0f} MB of the peak are Python and libraries.")
    if engine.threads_in_use != engine.threads_requested:
        lines.append(
            f"{engine.name} uses {engine.threads_in_use} threads, "
            f"not the {engine.threads_requested} asked for."
        )
    return lines


def _cache_note(m: Measurement) -> str:
    fraction = m.page_cache.resident_before_load
    if fraction is None:
        return f"{m.page_cache.state}: the system does not tell what was in the page cache."
    text = f"{m.page_cache.state}: {fraction:.0%} of the file was in the page cache before load."
    if m.page_cache.state == "cold" and fraction > 0.01:
        text += " So this load was not fully cold: something else holds the file."
    return text
