"""Measurements as a table that fits 80 columns, with a note on how they were taken."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from edgeadapt.bench.llama_bench import Imported
from edgeadapt.bench.measurement import Distribution, Failure, Measurement
from edgeadapt.bench.notes import notes

_MB = 1e6
_WIDTH = 80


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


def render(records: Sequence[Measurement | Failure | Imported]) -> str:
    """The table and its notes, as text of at most the terminal's width (80 when piped)."""
    measurements = [record for record in records if isinstance(record, Measurement)]
    imported = [record for record in records if isinstance(record, Imported)]
    wide = sys.stdout.isatty()
    width = max(shutil.get_terminal_size((_WIDTH, 24)).columns, 60) if wide else _WIDTH
    buffer = io.StringIO()
    console = Console(file=buffer, width=width, color_system=None, highlight=False, markup=False)
    if measurements or imported:
        console.print(_table(measurements, imported, wide))
    for note in notes(records):
        console.print(note, soft_wrap=False)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


def _table(measurements: Sequence[Measurement], imported: Sequence[Imported], wide: bool) -> Table:
    swept = len({m.runtime.threads_requested for m in measurements}) > 1
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
            f"{m.runtime.name}\n{m.page_cache.state}"
            + (f", {m.runtime.threads_requested} thr." if swept else ""),
            f"{m.load_s:.2f}",
            _spread(m.ttft_s, 1e3, 0),
            _spread(m.prefill_tps, digits=0),
            _spread(m.decode_tps),
            _memory(m),
        )
    for found in imported:
        table.add_row(
            f"{found.model.rsplit('/', 1)[-1]}\n{found.description}, "
            f"{found.size_bytes / _MB:.0f} MB",
            f"llama-bench\nimported, {found.threads} thr.",
            "-",
            "-",
            _spread(found.prefill[0].tps, digits=0) if found.prefill else "-",
            _spread(found.decode[0].tps) if found.decode else "-",
            f"{found.peak_rss / _MB:.0f}" if found.peak_rss else "-",
        )
    return table
