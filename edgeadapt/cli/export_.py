"""`edgeadapt export`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeadapt.cli.common import (
    MergeOptions,
    end_when_asked,
    merge_options,
    model_options,
    standard,
)
from edgeadapt.cli.export_report import report, report_plan
from edgeadapt.cli.gguf_options import GgufWishes, gguf_options
from edgeadapt.cli.onnx_options import onnx_options
from edgeadapt.cli.warm_options import WarmWish, warm_option
from edgeadapt.console import emit
from edgeadapt.errors import InputError

if TYPE_CHECKING:
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
    "ends with .onnx_adapter, one more for such a graph. A trained prefix or prompt: the KV cache "
    "that it is, as .safetensors.",
)
@click.option("--device", help="A device profile; it picks format and quantization.")
@click.option("--format", "format_", metavar="FORMAT", help="gguf, onnx, or a plugin's.")
@click.option(
    "--quant",
    help="Q4_K_M, Q8_0, F16, ... for gguf; int4, int8, int8-dynamic, fp16, fp32 for onnx.",
)
@click.option("--context", type=click.IntRange(min=1), help="Tokens that must fit the device.")
@gguf_options
@onnx_options
@click.option(
    "--parity/--no-parity", default=None,
    help="See that template and tokenizer in it make the original's tokens, on each installed "
    "runtime; else nothing is written and the exit code is 1. Default: the original is read by "
    "tokenizers, and by transformers only if something differs; --parity: by transformers at once, "
    "as in `run`, which takes some seconds.",
)  # fmt: skip
@click.option(
    "--verify", metavar="HOST",
    help="With --device: measure what was made, `here`, on ssh://user@host or adb://serial (see "
    "bench --on), and take the plan's next candidate if it misses a budget of the profile. What "
    "was tried is written beside it.",
)  # fmt: skip
@click.option(
    "--llama-bench", type=click.Path(path_type=Path), metavar="FILE",
    help="With --verify URL: measure with this llama-bench, built for the device (see bench).",
)  # fmt: skip
@warm_option
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
    gguf: GgufWishes,
    onnx: OnnxOptions,
    parity: bool | None,
    verify: str | None,
    llama_bench: Path | None,
    warm_prompt: Path | None,
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
    edgeadapt export --base default --format gguf --quant Q4_K_M \\
        --warm-prompt system.txt --out m.gguf
    """
    from edgeadapt.devices import load_profile
    from edgeadapt.export import export, plan_export
    from edgeadapt.fidelity.parity import ParityGate
    from edgeadapt.verified import export_verified

    end_when_asked()
    if warm_prompt is not None and (adapter_mode == "separate" or dry_run):
        raise InputError(
            "--warm-prompt runs the artifact that is made, and not with --dry-run; where an "
            "adapter stays apart, type: edgeadapt warm ARTIFACT --adapter FILE --prompt FILE"
        )
    if adapter_mode == "separate":
        if gguf.any or dry_run:
            raise InputError(
                "--calibrate, --imatrix, --tensor-type, --max-size, --split-max-size and --dry-run "
                "do not go with --adapter-mode separate"
            )
        kind = _check_separate(adapter, merging, device, format_, out)
        _separate(
            base, adapter, revision, any_base, kind, quant, threads, onnx, parity, out, as_json
        )
        return
    _check_target(device, format_, quant, gguf)
    wish = WarmWish(warm_prompt, out, threads)
    wish.check()
    if verify is not None and (device is None or gguf.any or dry_run):
        raise InputError(
            "--verify goes with --device, whose budgets it measures, and chooses by itself: leave "
            "--format, --calibrate, --imatrix, --tensor-type, --max-size, --split-max-size and "
            "--dry-run out"
        )
    if llama_bench is not None and verify in (None, "here"):
        raise InputError("--llama-bench goes with --verify ssh://... or adb://...")
    model = merging.open(base, adapter, revision, any_base)
    gate = ParityGate(model.folder, quick=parity is None)
    check = None if parity is False else gate
    if verify is not None and device is not None:
        with wish.after(check) as checks:
            verified = export_verified(
                model, load_profile(device), out, host=verify, llama_bench=llama_bench,
                quantization=quant, context=context, threads=threads, check=checks,
                onnx=onnx,
            )  # fmt: skip
        report(
            verified.artifact, None, as_json, parity=gate.report, verified=verified,
            warm=wish.done, foretold=wish.foretold(device, model, verified.artifact),
        )  # fmt: skip
        return
    reason = None
    if device is not None:
        format_, chosen, reason = _choose(model, device, context)
        quant = quant or chosen
        if format_ == "onnx":
            onnx = _for_device(onnx, device, quant)
    wish.check_runtime(format_ or "gguf")
    allocation = None
    if gguf.max_size is not None:
        if out.exists() and not dry_run:  # better said before minutes of work
            raise InputError(f"{out} exists already; choose another --out, or remove it first")
        allocation = gguf.allocate(model, threads)
        quant, options = allocation.mix, allocation.options()
    else:
        options = gguf.options(model, pending=dry_run)
    assert format_ is not None and quant is not None
    if dry_run:
        plan = plan_export(model, format_, quant, out, threads=threads, options=options, onnx=onnx)
        report_plan(plan, out, as_json, allocation)
        return
    with wish.after(check) as checks:
        artifact = export(
            model, format_, quant, out, threads=threads, options=options, onnx=onnx,
            check=checks,
        )  # fmt: skip
    report(
        artifact, reason, as_json, allocation, gate.report,
        warm=wish.done, foretold=wish.foretold(device, model, artifact),
    )  # fmt: skip


def _check_target(
    device: str | None, format_: str | None, quant: str | None, gguf: GgufWishes
) -> None:
    if (device is None) == (format_ is None):
        raise InputError("give either --device NAME, or --format and --quant")
    if gguf.max_size is not None:
        gguf.check_max_size(format_, quant)
    elif format_ is not None and quant is None:
        raise InputError(f"give --quant too: which {format_} quantization to write")


def _check_separate(
    adapter: tuple[str, ...],
    merging: MergeOptions,
    device: str | None,
    format_: str | None,
    out: Path,
) -> str:
    """The format; refuses what does not go with an adapter that stays apart."""
    from edgeadapt.prefix import is_prefix

    if merging.onto != "auto" or merging.held_out:
        raise InputError("--adapter-mode separate merges nothing: leave --merge-onto out")
    if device is not None or (format_ is None and not is_prefix(out)):
        raise InputError(
            "--adapter-mode separate needs --format gguf or onnx, or an --out that ends in "
            ".safetensors for a prefix, and no --device"
        )
    if not adapter:
        raise InputError("--adapter-mode separate needs an adapter: give --adapter")
    return format_ or "gguf"


def _for_device(onnx: OnnxOptions, device: str, quant: str) -> OnnxOptions:
    from edgeadapt.converters.onnx.options import for_device
    from edgeadapt.devices import load_profile

    return for_device(onnx, load_profile(device), quant)


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
    from edgeadapt.export import export
    from edgeadapt.export_separate import export_adapter, export_prefix, open_with_adapters
    from edgeadapt.fidelity.parity import ParityGate
    from edgeadapt.lora_slots import FOLDER, SUFFIX
    from edgeadapt.prefix import is_prefix

    found: ParityReport | None = None
    if is_prefix(out):
        if quant is not None or parity or onnx != OnnxOptions():
            raise InputError(
                "a prefix holds float32 keys and values, no text and no graph: leave --quant, "
                "--parity and the options of ONNX graphs out"
            )
        made = export_prefix(base, adapter, out, revision=revision, any_base=any_base)
        use = f"edgeadapt chat BASE.gguf --adapter {out}, or with an ONNX folder of the base"
    elif format == "onnx" and out.suffix != SUFFIX:
        if quant is None:
            raise InputError("give --quant too: which onnx quantization to write the base in")
        model, apart = open_with_adapters(base, adapter, revision=revision, any_base=any_base)
        gate = ParityGate(model.folder, quick=parity is None)
        made = export(
            model, format, quant, out, threads=threads, onnx=replace(onnx, adapters=apart),
            check=None if parity is False else gate,
        )  # fmt: skip
        found = gate.report
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
    report(made, None, as_json, parity=found)
    if not as_json:
        emit(f"use it: {use}")


def _choose(model: ModelToExport, device: str, context: int | None) -> tuple[str, str, str]:
    """Format, quantization and the reason, from the device's profile."""
    from edgeadapt.devices import load_profile
    from edgeadapt.planner import choose
    from edgeadapt.planner.sizes import facts_of

    choice = choose(load_profile(device), facts_of(model), context=context)
    return choice.format, choice.quantization, choice.reason
