"""`edgeadapt devices`: profiles of devices known by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeadapt.cli.common import standard
from edgeadapt.console import emit, emit_json, log
from edgeadapt.errors import InputError

if TYPE_CHECKING:
    from edgeadapt.devices import DeviceProfile, OffloadClient
    from edgeadapt.hardware import Figure, GpuFacts

_WIDTH = 80
_LEGEND = "~ an estimate, no source"


@click.group("devices")
def command() -> None:
    """List, show, check and detect device profiles.

    `edgeadapt plan --device NAME` predicts from them what fits and how fast;
    `edgeadapt export --device NAME` picks format and quantization.
    """


@command.command("list")
@standard
def list_(as_json: bool) -> None:
    """List the devices that edgeadapt knows by name."""
    from edgeadapt.devices import list_profiles, load_entry

    entries = [load_entry(name) for name in list_profiles()]
    if as_json:
        emit_json([_document(entry) for entry in entries])
        return
    rows = [("NAME", "RAM GiB", "GB/s", "THREADS", "FIRST CHOICE")]
    rows += [_list_row(entry) for entry in entries]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        emit("  ".join(cells).rstrip())
    emit(f"\n{_LEGEND}; GB/s: weights read, as measured, or the memory's peak")


def _list_row(entry: DeviceProfile | OffloadClient) -> tuple[str, str, str, str, str]:
    if entry.kind == "offload":
        return entry.name, str(entry.ram_gib or "-"), "-", "-", "runs no model, asks a host"
    first, memory = entry.runtimes[0], entry.memory
    on = " GPU" if first.backend == "gpu" else ""
    return (
        entry.name,
        str(memory.ram_gib),
        str(memory.streaming_gbps or memory.read_gbps or memory.peak_gbps),
        str(entry.threads),
        f"{first.format} {first.quantizations[0].name}, {first.name}{on}",
    )


def _document(entry: DeviceProfile | OffloadClient) -> dict[str, Any]:
    """For JSON: the profile, whether it runs models, and which of its numbers are estimates."""
    estimates = [path for path, figure in entry.figures() if figure.estimate]
    return {**entry.model_dump(mode="json"), "kind": entry.kind, "estimates": estimates}


@command.command()
@click.argument("name", metavar="NAME")
@standard
def show(name: str, as_json: bool) -> None:
    """Show a device: facts, sources, and what to run on it.

    NAME is one of `edgeadapt devices list`, or the path of a profile's YAML file.
    """
    from edgeadapt.devices import load_entry

    entry = load_entry(name)
    if as_json:
        emit_json(_document(entry))
        return
    emit(_offload_page(entry) if entry.kind == "offload" else _page(entry))


@command.command()
@click.argument("path", metavar="PATH", type=click.Path(path_type=Path))
@standard
def validate(path: Path, as_json: bool) -> None:
    """Check a profile's YAML file: exit code 0, or one sentence that names the field."""
    from edgeadapt.devices import read_entry

    profile = read_entry(path)
    estimates = [name for name, figure in profile.figures() if figure.estimate]
    if as_json:
        emit_json({"path": str(path), "name": profile.name, "estimates": estimates})
        return
    emit(f"{path}: valid, {profile.name}; {len(estimates)} of its figures are estimates")


@command.command()
@click.option("--name", help="What to call it; default: from the board or CPU.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Write the YAML file here; default: stdout."
)
@standard
def detect(name: str | None, out: Path | None, as_json: bool) -> None:
    """Make a profile of the machine that this runs on.

    CPU, instruction sets, kinds of cores, RAM and governor as the system tells
    them (Linux on x86 or Arm, macOS); the bandwidth of reading memory is
    measured, which takes a second or two: let nothing else run.

    \b
    edgeadapt devices detect --out my-board.yaml
    edgeadapt plan --base default --device my-board.yaml
    """
    from edgeadapt.detect import detect_profile, profile_yaml
    from edgeadapt.files import atomic_file

    if out is not None and out.exists():
        raise InputError(f"{out} exists; give another --out, or remove it")
    profile = detect_profile(name)
    if out is not None:
        with atomic_file(out) as partial:
            partial.write_text(profile_yaml(profile), encoding="utf-8")
    if as_json:
        emit_json({"path": str(out) if out else None, **_document(profile)})
    elif out is None:
        emit(profile_yaml(profile).rstrip())
    else:
        emit(f"{out}: {profile.title}, {profile.memory.read_gbps} GB/s read")
    if profile.cpu.governor == "powersave":
        log.warning("the governor is powersave: speeds will be lower than predicted")


def _page(profile: DeviceProfile) -> str:
    numbers = {key: index for index, key in enumerate(profile.sources, 1)}
    lines = [profile.title, "=" * len(profile.title), ""]
    for label, text in _facts(profile, numbers):
        lines += _wrap(text, f"{label:<10} ", " " * 11)
    for runtime in profile.runtimes:
        lines += ["", *_wrap(runtime.reason, f"{runtime.name} ({runtime.format}): ", " " * 4)]
        for quantization in runtime.quantizations:
            lines += _wrap(quantization.reason, f"  {quantization.name:<8} ", " " * 11)
    lines += ["", "Sources", *_sources(profile)]
    return "\n".join(lines)


def _facts(profile: DeviceProfile, numbers: dict[str, int]) -> Iterator[tuple[str, str]]:
    def cite(figure: Figure, unit: str = "") -> str:
        mark = f" [{numbers[figure.source]}]" if figure.source else ""
        note = f" ({figure.note})" if figure.note else ""
        return f"{figure}{unit}{mark}{note}"

    cpu, memory = profile.cpu, profile.memory
    isa = "~" if cpu.isa_source == "estimate" else f" [{numbers[cpu.isa_source]}]"
    yield "name", profile.name
    yield "SoC", profile.soc
    yield "system", profile.os
    yield "CPU", f"{cpu.name}; {cpu.arch}{f', {cpu.level}' if cpu.level else ''}"
    for core in cpu.cores:
        clock = f" at {cite(core.ghz, ' GHz')}" if core.ghz else ""
        yield "cores", f"{cite(core.count)} {core.name}{clock}"
    if cpu.governor:
        yield "governor", cpu.governor
    names = " ".join(cpu.isa)
    yield "ISA", f"~{names}" if isa == "~" else names + isa
    sizes = ", ".join(f"{size:g}" for size in memory.ram_options_gib)
    yield "RAM", cite(memory.ram_gib, " GiB") + (f"; sold with {sizes}" if sizes else "")
    yield "bandwidth", cite(memory.peak_gbps, " GB/s peak")
    if memory.streaming_gbps:
        yield "", cite(memory.streaming_gbps, " GB/s reading weights")
    budget = f"{profile.model_budget_gib:.1f} GiB"
    if memory.read_gbps:
        yield "", cite(memory.read_gbps, " GB/s read by all cores")
    yield "for models", f"~{budget}, {cite(memory.model_share, ' of the RAM')}"
    if profile.gpu:
        yield "GPU", _gpu(profile.gpu, cite)
    if profile.npu:
        tops = f", {cite(profile.npu.tops, ' TOPS')}" if profile.npu.tops else ""
        note = f"; {profile.npu.note}" if profile.npu.note else ""
        yield "NPU", f"{profile.npu.name}{tops}{note}"
    budgets = profile.budgets
    if budgets.max_memory_gib:
        yield "budget", f"at most {cite(budgets.max_memory_gib, ' GiB')}"
    if budgets.min_decode_tps:
        yield "budget", f"at least {cite(budgets.min_decode_tps, ' tokens a second')}"
    if budgets.max_ttft_s:
        yield "budget", f"first token within {cite(budgets.max_ttft_s, ' s')}"
    yield "threads", cite(profile.threads)
    yield "context", cite(profile.context, " tokens")


def _gpu(gpu: GpuFacts, cite: Callable[[Figure, str], str]) -> str:
    memory = "shares the memory"
    if gpu.memory_gib:
        memory = f"{cite(gpu.memory_gib, ' GiB')} of its own"
    use = f"takes {gpu.layers} layers by {', '.join(gpu.apis)}" if gpu.layers != "none" else ""
    return "; ".join(filter(None, (gpu.name, memory, use or "not used", gpu.note)))


def _offload_page(entry: OffloadClient) -> str:
    numbers = {key: index for index, key in enumerate(entry.sources, 1)}
    lines = [entry.title, "=" * len(entry.title), ""]
    facts = [("name", entry.name), ("SoC", entry.soc), ("system", entry.os)]
    facts.append(("no model", entry.offload))
    if entry.hosts:
        facts.append(("hosts", ", ".join(entry.hosts)))
    if entry.ram_gib:
        mark = f" [{numbers[entry.ram_gib.source]}]" if entry.ram_gib.source else ""
        facts.append(("RAM", f"{entry.ram_gib} GiB{mark}"))
    facts += [(label, text) for label, text in (("GPU", entry.gpu), ("NPU", entry.npu)) if text]
    for label, text in facts:
        lines += _wrap(text, f"{label:<10} ", " " * 11)
    return "\n".join([*lines, "", "Sources", *_sources(entry)])


def _sources(profile: DeviceProfile | OffloadClient) -> list[str]:
    lines = []
    for index, text in enumerate(profile.sources.values(), 1):
        lines += _wrap(text, f"  [{index}] ", " " * 6)
    return [*lines, f"   {_LEGEND}"]


def _wrap(text: str, first: str, rest: str) -> list[str]:
    import textwrap

    return textwrap.wrap(text, _WIDTH, initial_indent=first, subsequent_indent=rest)
