"""What stands below the table: how figures were taken, what disturbed them, what failed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgeadapt.bench.llama_bench import Imported
from edgeadapt.bench.measurement import Failure, Measurement, Sustained, WarmFirstToken

_MB = 1e6
_BUSY = 0.1
"""Share of the CPU used by others from which a run is called disturbed."""
_STOLEN = 0.02


def notes(records: Sequence[Measurement | Failure | Imported]) -> list[str]:
    """How the figures were taken, and more of them: one line each, the same line only once."""
    measurements = [record for record in records if isinstance(record, Measurement)]
    lines = [line for m in measurements for line in _notes_on(m)]
    before = max((m.machine.busy or 0.0 for m in measurements), default=0.0)
    if before > _BUSY:
        lines.append(
            f"Other programs used {before:.0%} of the CPU before a run: the speeds may be too low."
        )
    lines += _disturbed(measurements)
    lines += [
        f"{Path(r.artifact).name} on {r.runtime}, {r.threads} threads: {r.outcome}. {r.reason}."
        for r in records
        if isinstance(r, Failure)
    ]
    lines += [_of_import(r) for r in records if isinstance(r, Imported)]
    further = [line for m in measurements for line in _further(m, _what(m, measurements))]
    return further + list(dict.fromkeys(lines))


def _of_import(found: Imported) -> str:
    """Which tests of llama-bench the columns show, and the others."""
    tests = [f"prefill of {s.tokens} at depth {s.depth}: {s.tps.median:.1f}" for s in found.prefill]
    tests += [f"decode of {s.tokens} at depth {s.depth}: {s.tps.median:.1f}" for s in found.decode]
    where = f"{found.cpu}{', ' if found.gpu else ''}{found.gpu}"
    return (
        f"{found.model.rsplit('/', 1)[-1]}: imported from llama-bench {found.build}, {where}, "
        f"threads {found.threads}{_on_cores(found.cores)}, backend {found.backends}; the columns "
        f"show the first of: {'; '.join(tests) or 'none'} (medians, tok/s)."
    )


def _on_cores(cores: Sequence[int]) -> str:
    return f" on cores {', '.join(map(str, cores))}" if cores else ""


def _disturbed(measurements: Sequence[Measurement]) -> list[str]:
    during = [m.background for m in measurements if m.background is not None]
    others = max((b.others or 0.0 for b in during), default=0.0)
    steal = max((b.steal or 0.0 for b in during), default=0.0)
    lines = []
    if others > _BUSY:
        lines.append(
            f"Other programs used {others:.0%} of the CPU during a run: the speeds may be too low."
        )
    if steal > _STOLEN:
        lines.append(f"The hypervisor gave {steal:.0%} of the CPU to other machines during a run.")
    return lines


def _what(m: Measurement, measurements: Sequence[Measurement]) -> str:
    name = Path(m.artifact.path).name
    if len(measurements) == 1:
        return name
    return f"{name} on {m.runtime.name}, {m.runtime.threads_requested} threads"


def _further(m: Measurement, what: str) -> list[str]:
    """Figures that have no column."""
    lines = []
    if m.depths:
        parts = [f"{d.decode_tps.median:.1f} at {d.depth}" for d in m.depths]
        lines.append(f"{what}: decode tok/s by tokens in the context: {', '.join(parts)}.")
    if m.warm is not None:
        lines.append(_warm(m.warm, what))
    if m.energy is not None:
        e = m.energy
        lines.append(
            f"{what}: {e.joules / e.repetitions:.2f} J a repetition, {e.joules / e.seconds:.2f} W "
            f"({e.source} {e.scope}, all else on it included)."
        )
    if m.sustained is not None:
        lines += _sustained(m.sustained, what)
    return lines


def _warm(w: WarmFirstToken, what: str) -> str:
    """Medians, of both ways by turns."""
    state = {"shipped": "shipped", "kept": "kept here", "computed": "computed just now"}[w.state]
    return (
        f"{what}, first token after a warm prompt of {w.tokens} tokens and {w.question_tokens} "
        f"more: {w.ttft_s.median * 1e3:.0f} ms, without its state "
        f"{w.ttft_without_s.median * 1e3:.0f} ms (medians of {w.ttft_s.count}, by turns). The "
        f"state, {w.state_bytes / _MB:.1f} MB, {state}, was ready {w.ready_s * 1e3:.0f} ms after "
        "loading."
    )


def _sustained(s: Sustained, what: str) -> list[str]:
    lines = [f"{what}, sustained: second, decode tok/s, °C, MHz"]
    for w in s.windows:
        heat = "-" if w.temperature_c is None else f"{w.temperature_c:.0f}"
        clock = "-" if w.frequency_mhz is None else f"{w.frequency_mhz:.0f}"
        lines.append(f"  {w.start_s:5.0f} {w.decode_tps:8.1f} {heat:>5} {clock:>6}")
    if s.kept is not None:
        lines.append(f"The last quarter of the time ran at {s.kept:.0%} of the first's speed.")
    if s.throttling:
        lines.append(f"Throttled: {'; '.join(s.throttling)}.")
    elif s.watched:
        lines.append(f"No throttling seen in: {', '.join(s.watched)}.")
    else:
        lines.append("This system shows no temperature, clock or throttling.")
    return lines


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
    lines += _gpu_notes(m)
    running = engine.threads_running
    if running is not None and running != engine.threads_requested:
        lines.append(
            f"{engine.name}: {running} threads computed, not the {engine.threads_requested} "
            f"asked for ({engine.cores_used or 0:.1f} cores were used)."
        )
    if engine.threads_in_use != engine.threads_requested:
        lines.append(
            f"{engine.name} uses {engine.threads_in_use} threads, "
            f"not the {engine.threads_requested} asked for."
        )
    return lines


def _gpu_notes(m: Measurement) -> list[str]:
    asked = m.settings.gpu_layers
    if not asked:
        return []
    wanted = "all layers" if asked < 0 else f"{asked} layers"
    if not m.runtime.gpus:
        return [
            f"No GPU was seen: {wanted} asked for on a GPU ran on the CPU; this llama.cpp is "
            "built without one, or there is none here."
        ]
    return [f"GPU layers: {m.runtime.gpu_layers} ({wanted} asked for) on {m.runtime.gpus[0]}."]


def _cache_note(m: Measurement) -> str:
    fraction = m.page_cache.resident_before_load
    if fraction is None:
        return f"{m.page_cache.state}: the system does not tell what was in the page cache."
    text = f"{m.page_cache.state}: {fraction:.0%} of the file was in the page cache before load."
    if m.page_cache.state == "cold" and fraction > 0.01:
        text += " So this load was not fully cold: something else holds the file."
    return text
