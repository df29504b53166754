"""`edgeadapt export`."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeadapt.cli.common import (
    MergeOptions,
    end_when_asked,
    merge_options,
    model_options,
    standard,
)
from edgeadapt.cli.onnx_options import onnx_options
from edgeadapt.console import emit, emit_json
from edgeadapt.errors import InputError

if TYPE_CHECKING:
    from edgeadapt.allocation.allocation import Allocation
    from edgeadapt.converters.base import ExportPlan
    from edgeadapt.converters.gguf.options import GgufOptions
    from edgeadapt.converters.onnx.options import OnnxOptions
    from edgeadapt.export import ModelToExport
    from edgeadapt.fidelity.parity import ParityReport


@click.command()
@model_options(adapter_required=False)
@merge_options
@click.option(
    "--adapter-mode",
    type=click.Choice(["merged", "separate"]),
    default="merged",
    show_default=True,
    help="separate: the adapter as a file of its own, which the base's runtime loads beside it: a "
    "GGUF LoRA; or an ONNX folder whose graph takes adapters, with these in it; or, where --out "
    "ends with .onnx_adapter, one more for such a graph.",
)
@click.option("--device", help="A device profile; it picks format and quantization.")
@click.option("--format", "format_", metavar="FORMAT", help="gguf, onnx, or a plugin's.")
@click.option(
    "--quant",
    help="Q4_K_M, Q8_0, F16, ... for gguf; int4, int8, int8-dynamic, fp16, fp32 for onnx.",
)
@click.option("--context", type=click.IntRange(min=1), help="Tokens that must fit the device.")
@click.option("--calibrate", metavar="DATA", help="Weigh by importance on this data; see imatrix.")
@click.option(
    "--imatrix",
    type=click.Path(path_type=Path),
    help="Weigh by importance, from a file that imatrix or llama-imatrix wrote.",
)
@click.option(
    "--tensor-type",
    "tensor_types",
    multiple=True,
    metavar="PATTERN=TYPE",
    help="Type of the tensors whose llama.cpp name holds this regular expression, "
    "such as ffn_down=Q6_K; the first that matches wins.",
)
@click.option(
    "--max-size",
    metavar="SIZE",
    help="Most that the file may take, such as 80MiB: each tensor gets the type that loses least "
    "on the data of --calibrate. In place of --quant, for gguf.",
)
@click.option(
    "--split-max-size", metavar="SIZE", help="Split into files of at most 500M, 2G, ..., for gguf."
)
@onnx_options
@click.option(
    "--parity/--no-parity", default=None,
    help="See that template and tokenizer in it make the original's tokens, on each installed "
    "runtime; else nothing is written and the exit code is 1. Default: the original is read by "
    "tokenizers, and by transformers only if something differs; --parity: by transformers at once, "
    "as in `run` and `evaluate`, which takes some seconds.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Say what it would take, and write nothing.")
@click.option("--threads", type=click.IntRange(min=1), help="Default: all cores.")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="A file for gguf, else a folder."
)
@standard
def command(
    base: str,
    adapter: tuple[str, ...],
    revision: str | None,
    any_base: bool,
    merging: MergeOptions,
    adapter_mode: str,
    device: str | None,
    format_: str | None,
    quant: str | None,
    context: int | None,
    calibrate: str | None,
    imatrix: Path | None,
    tensor_types: tuple[str, ...],
    max_size: str | None,
    split_max_size: str | None,
    onnx: OnnxOptions,
    parity: bool | None,
    dry_run: bool,
    threads: int | None,
    out: Path,
    as_json: bool,
) -> None:
    """Write an artifact that a runtime loads, in one pass from base and adapter.

    Name the device, and its profile picks format and quantization; or pick
    them yourself with --format and --quant; or say how large the file may be
    with --max-size, and the types are chosen by what they cost on your data.

    \b
    edgeadapt export --base default --adapter runs/a \\
        --device raspberry-pi-5 --out model.gguf
    edgeadapt export --base default --format gguf --quant Q4_K_M --out m.gguf
    edgeadapt export --base default --format gguf --max-size 80MiB \\
        --calibrate chats.jsonl --out m.gguf
    """
    from edgeadapt.export import export, plan_export
    from edgeadapt.fidelity.parity import ParityGate

    end_when_asked()
    if adapter_mode == "separate":
        if calibrate or imatrix or tensor_types or max_size or split_max_size or dry_run:
            raise InputError(
                "--calibrate, --imatrix, --tensor-type, --max-size, --split-max-size and --dry-run "
                "do not go with --adapter-mode separate"
            )
        if merging.onto != "auto" or merging.held_out:
            raise InputError("--adapter-mode separate merges nothing: leave --merge-onto out")
        if format_ is None or device is not None:
            raise InputError("--adapter-mode separate needs --format gguf or onnx, and no --device")
        if not adapter:
            raise InputError("--adapter-mode separate needs an adapter: give --adapter")
        _separate(
            base, adapter, revision, any_base, format_, quant, threads, onnx, parity, out, as_json
        )
        return
    if (device is None) == (format_ is None):
        raise InputError("give either --device NAME, or --format and --quant")
    if max_size is not None:
        _check_max_size(format_, quant, calibrate, imatrix, tensor_types)
    elif format_ is not None and quant is None:
        raise InputError(f"give --quant too: which {format_} quantization to write")
    model = merging.open(base, adapter, revision, any_base)
    reason = None
    if device is not None:
        format_, chosen, reason = _choose(model, device, context)
        quant = quant or chosen
        if format_ == "onnx":
            onnx = _for_device(onnx, device, quant)
    allocation = None
    if max_size is not None:
        if out.exists() and not dry_run:  # better said before minutes of work
            raise InputError(f"{out} exists already; choose another --out, or remove it first")
        allocation = _allocate(model, calibrate, max_size, split_max_size, threads)
        quant, options = allocation.mix, allocation.options()
    else:
        options = _options(model, calibrate, imatrix, tensor_types, split_max_size, dry_run)
    assert format_ is not None and quant is not None
    if dry_run:
        plan = plan_export(model, format_, quant, out, threads=threads, options=options, onnx=onnx)
        _report_plan(plan, out, as_json, allocation)
        return
    gate = ParityGate(model.folder, quick=parity is None)
    artifact = export(
        model, format_, quant, out, threads=threads, options=options, onnx=onnx,
        check=None if parity is False else gate,
    )  # fmt: skip
    _report(
        artifact.path, artifact.size_bytes, format_, artifact.quantization, reason,
        artifact.lineage, as_json, allocation, gate.report,
    )  # fmt: skip


def _for_device(onnx: OnnxOptions, device: str, quant: str) -> OnnxOptions:
    from edgeadapt.converters.onnx.options import for_device
    from edgeadapt.devices import load_profile

    return for_device(onnx, load_profile(device), quant)


def _check_max_size(
    format_: str | None,
    quant: str | None,
    calibrate: str | None,
    imatrix: Path | None,
    tensor_types: tuple[str, ...],
) -> None:
    if format_ != "gguf":
        raise InputError("--max-size is for --format gguf, and takes no --device: give its budget")
    if quant or imatrix or tensor_types:
        raise InputError(
            "--max-size chooses every type by itself, and weighs by --calibrate: leave --quant, "
            "--imatrix and --tensor-type out"
        )
    if calibrate is None:
        raise InputError(
            "--max-size measures what each type costs: give --calibrate DATA, what the model will "
            "be used on (a dataset, a .txt file, or `python-docs`)"
        )


def _allocate(
    model: ModelToExport,
    calibrate: str | None,
    max_size: str,
    split_max_size: str | None,
    threads: int | None,
) -> Allocation:
    from edgeadapt.allocation.allocate import allocate
    from edgeadapt.converters.gguf.options import parse_size
    from edgeadapt.data.source import resolve_data

    split = parse_size(split_max_size) if split_max_size else 0
    data = resolve_data(calibrate or "")[0]
    return allocate(model, data, max_size, threads=threads, split_max_bytes=split)


def _separate(
    base: str,
    adapter: tuple[str, ...],
    revision: str | None,
    any_base: bool,
    format: str,
    quant: str | None,
    threads: int | None,
    onnx: OnnxOptions,
    parity: bool | None,
    out: Path,
    as_json: bool,
) -> None:
    """An adapter as a file of its own, or an ONNX graph and its adapters."""
    from edgeadapt.converters.onnx.options import OnnxOptions
    from edgeadapt.export import export, export_adapter
    from edgeadapt.export_separate import open_with_adapters
    from edgeadapt.fidelity.parity import ParityGate
    from edgeadapt.lora_slots import FOLDER, SUFFIX

    report: ParityReport | None = None
    if format == "onnx" and out.suffix != SUFFIX:
        if quant is None:
            raise InputError("give --quant too: which onnx quantization to write the base in")
        model, apart = open_with_adapters(base, adapter, revision=revision, any_base=any_base)
        gate = ParityGate(model.folder, quick=parity is None)
        made = export(
            model, format, quant, out, threads=threads, onnx=replace(onnx, adapters=apart),
            check=None if parity is False else gate,
        )  # fmt: skip
        report = gate.report
        use = f"edgeadapt chat {out} --adapter {out / FOLDER}/NAME{SUFFIX}"
    else:
        if parity or onnx != OnnxOptions():
            raise InputError(
                "an adapter file holds no text and no graph: leave --parity and the options of "
                "ONNX graphs (--exporter, --algorithm, --block-size, ...) out"
            )
        made = export_adapter(
            base, adapter, format, quant, out, revision=revision, any_base=any_base
        )
        use = f"llama-cli -m BASE.gguf --lora {out}, with the base exported likewise"
        if format == "onnx":
            use = f"edgeadapt chat FOLDER --adapter {out}, with a folder exported likewise"
    _report(
        out, made.size_bytes, format, made.quantization, None, made.lineage, as_json, None, report
    )
    if not as_json:
        emit(f"use it: {use}")


def _choose(model: ModelToExport, device: str, context: int | None) -> tuple[str, str, str]:
    """Format, quantization and the reason, from the device's profile."""
    from edgeadapt.devices import load_profile
    from edgeadapt.planner import choose
    from edgeadapt.planner.sizes import facts_of

    choice = choose(load_profile(device), facts_of(model), context=context)
    return choice.format, choice.quantization, choice.reason


def _options(
    model: ModelToExport,
    calibrate: str | None,
    imatrix: Path | None,
    tensor_types: tuple[str, ...],
    split_max_size: str | None,
    dry_run: bool,
) -> GgufOptions:
    from edgeadapt.converters.gguf.options import GgufOptions, parse_size, parse_tensor_type

    types = tuple(parse_tensor_type(text) for text in tensor_types)
    split = parse_size(split_max_size) if split_max_size else 0
    if calibrate is None and imatrix is None:
        return GgufOptions(None, types, split)
    if calibrate is not None and imatrix is not None:
        raise InputError("give --calibrate DATA or --imatrix FILE, not both")
    if imatrix is not None:
        from edgeadapt.converters.gguf.imatrix import read_imatrix

        return GgufOptions(read_imatrix(imatrix), types, split)
    from edgeadapt.calibration import cached_imatrix, pending_imatrix
    from edgeadapt.data.source import resolve_data

    data = resolve_data(calibrate or "")[0]
    return GgufOptions(
        pending_imatrix(data) if dry_run else cached_imatrix(model, data), types, split
    )


def _report_plan(plan: ExportPlan, out: Path, as_json: bool, allocation: Allocation | None) -> None:
    from edgeadapt.files import free_bytes

    free = free_bytes(out)
    if as_json:
        emit_json(
            {
                "format": plan.format,
                "quantization": plan.quantization,
                "allocation": allocation.document() if allocation else None,
                "exact": plan.exact,
                "files": plan.files,
                "output_bytes": plan.output,
                "memory_bytes": plan.memory,
                "disk_bytes": plan.disk,
                "disk_free_bytes": free,
                "fits": plan.disk <= free,
            }
        )
        return
    if allocation is not None:
        emit(allocation.table())
    about = "" if plan.exact else "about "
    for name, size in plan.files.items():
        emit(f"{name}: {about}{size:,} bytes ({size / 2**20:.1f} MiB)")
    emit(f"peak memory: about {plan.memory / 2**20:,.0f} MiB")
    room = "enough" if plan.disk <= free else "NOT enough"
    emit(f"disk needed: {about}{plan.disk / 2**20:,.1f} MiB, {free / 2**20:,.0f} MiB free: {room}")


def _report(
    path: Path,
    size: int,
    format: str,
    quant: str,
    reason: str | None,
    lineage: dict[str, Any],
    as_json: bool,
    allocation: Allocation | None = None,
    parity: ParityReport | None = None,
) -> None:
    if as_json:
        emit_json(
            {
                "path": str(path),
                "format": format,
                "quantization": quant,
                "bytes": size,
                "reason": reason,
                "allocation": allocation.document() if allocation else None,
                "lineage": lineage,
                "parity": parity and parity.record(),
            }
        )
        return
    if reason:
        emit(reason)
    if allocation is not None:
        emit(allocation.table())
    emit(f"{path}: {format} {quant}, {size / 2**20:.1f} MiB")
    if parity is not None and parity.checked:
        runtimes = ", ".join(parity.mismatches)
        emit(f"parity: {parity.cases} texts give the original's tokens on {runtimes}")
    if lineage.get("mode") != "separate":
        emit(f"try it: edgeadapt chat {shlex.quote(str(path))}")
