"""`edgeadapt devices`: profiles of devices known by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeadapt.cli.common import standard
from edgeadapt.console import emit, emit_json

if TYPE_CHECKING:
    from edgeadapt.devices import DeviceProfile, Figure

_WIDTH = 80
_LEGEND = "~ an estimate, no source"


@click.group("devices")
def command() -> None:
    """List, show and check device profiles.

    `edgeadapt export --device NAME` picks format and quantization from them.
    """


@command.command("list")
@standard
def list_(as_json: bool) -> None:
    """List the devices that edgeadapt knows by name."""
    from edgeadapt.devices import list_profiles, load_profile

    profiles = [load_profile(name) for name in list_profiles()]
    if as_json:
        emit_json([profile.model_dump(mode="json") for profile in profiles])
        return
    rows = [("NAME", "RAM GiB", "GB/s", "THREADS", "FIRST CHOICE")]
    for profile in profiles:
        first = profile.runtimes[0]
        rows.append(
            (
                profile.name,
                str(profile.memory.ram_gib),
                str(profile.memory.streaming_gbps or profile.memory.peak_gbps),
                str(profile.threads),
                f"{first.format} {first.quantizations[0].name}, {first.name}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        emit("  ".join(cells).rstrip())
    emit(f"\n{_LEGEND}; GB/s: weights read, as measured, or the memory's peak")


@command.command()
@click.argument("name", metavar="NAME")
@standard
def show(name: str, as_json: bool) -> None:
    """Show a device: facts, sources, and what to run on it.

    NAME is one of `edgeadapt devices list`, or the path of a profile's YAML file.
    """
    from edgeadapt.devices import load_profile

    profile = load_profile(name)
    if as_json:
        emit_json(profile.model_dump(mode="json"))
        return
    emit(_page(profile))


@command.command()
@click.argument("path", metavar="PATH", type=click.Path(path_type=Path))
@standard
def validate(path: Path, as_json: bool) -> None:
    """Check a profile's YAML file: exit code 0, or one sentence that names the field."""
    from edgeadapt.devices import read_profile

    profile = read_profile(path)
    estimates = [name for name, figure in profile.figures() if figure.estimate]
    if as_json:
        emit_json({"path": str(path), "name": profile.name, "estimates": estimates})
        return
    emit(f"{path}: valid, {profile.name}; {len(estimates)} of its figures are estimates")


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
    names = " ".join(cpu.isa)
    yield "ISA", f"~{names}" if isa == "~" else names + isa
    sizes = ", ".join(f"{size:g}" for size in memory.ram_options_gib)
    yield "RAM", cite(memory.ram_gib, " GiB") + (f"; sold with {sizes}" if sizes else "")
    yield "bandwidth", cite(memory.peak_gbps, " GB/s peak")
    if memory.streaming_gbps:
        yield "", cite(memory.streaming_gbps, " GB/s reading weights")
    budget = f"{profile.model_budget_gib:.1f} GiB"
    yield "for models", f"~{budget}, {cite(memory.model_share, ' of the RAM')}"
    if profile.gpu:
        yield "GPU", profile.gpu
    if profile.npu:
        yield "NPU", profile.npu
    yield "threads", cite(profile.threads)
    yield "context", cite(profile.context, " tokens")


def _sources(profile: DeviceProfile) -> list[str]:
    lines = []
    for index, text in enumerate(profile.sources.values(), 1):
        lines += _wrap(text, f"  [{index}] ", " " * 6)
    return [*lines, f"   {_LEGEND}"]


def _wrap(text: str, first: str, rest: str) -> list[str]:
    import textwrap

    return textwrap.wrap(text, _WIDTH, initial_indent=first, subsequent_indent=rest)
