"""`edgeadapt evaluate`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeadapt.cli.common import standard
from edgeadapt.console import emit, emit_json
from edgeadapt.errors import InputError

if TYPE_CHECKING:
    from edgeadapt.export import MergeBase
    from edgeadapt.fidelity.task import Task
    from edgeadapt.pipeline.evaluation import Subject


@click.command("evaluate")
@click.argument("artifacts", metavar="ARTIFACT...", nargs=-1, required=True, type=Path)
@click.option("--reference", metavar="RUN", type=Path, help="Folder of a run, such as runs/demo.")
@click.option("--base", metavar="B", help="In place of a run: what the artifacts were made from.")
@click.option(
    "--adapter", metavar="DIR[=WEIGHT]", multiple=True,
    help="With --base: the adapter in them; repeatable, and weighted as in export.",
)  # fmt: skip
@click.option(
    "--beside", metavar="FILE", type=Path,
    help="An adapter's .gguf or .onnx_adapter file that runs beside each ARTIFACT.",
)  # fmt: skip
@click.option(
    "--merge-onto", type=click.Choice(["original", "quantized"]),
    help="What the adapter in them was merged onto. Default: as in the run, else original.",
)  # fmt: skip
@click.option("--trained-on", metavar="FORMAT", help="As of export: nf4, nf4-double, ...")
@click.option("--data", metavar="D", help="Held-out data, or a .txt file. Default: the run's.")
@click.option("--examples", type=click.IntRange(1), help="Most examples or windows to score.")
@click.option("--max-tokens", type=click.IntRange(2), help="Cut longer examples. Default: 512.")
@click.option(
    "--window", type=click.IntRange(4), default=512, show_default=True,
    help="Of a .txt file: tokens in a window, whose second half is scored.",
)  # fmt: skip
@click.option("--runtime", metavar="NAME", help="One runtime, or 'all' that are installed.")
@click.option("--threads", type=click.IntRange(1), help="Default: the physical cores available.")
@click.option(
    "--gate", "gates", multiple=True, metavar="NAME=LIMIT",
    help="Such as max_kl=0.1 or min_top1=null (off); repeatable.",
)  # fmt: skip
@click.option("--device", "devices", multiple=True, help="That a better quantization has to fit.")
@click.option(
    "--task", metavar="METRIC", help="exact-match, f1, rouge-l, multiple-choice or a plugin's."
)
@click.option("--task-data", metavar="D", help="Questions and answers. Default: as --data.")
@click.option("--task-examples", type=click.IntRange(1), default=32, show_default=True)
@click.option("--task-tokens", type=click.IntRange(1), default=64, show_default=True)
@click.option(
    "--no-quantized-base", is_flag=True,
    help="Do not quantize and run the plain base: faster, but the loss of bits is not told "
    "from the loss of the adapter.",
)  # fmt: skip
@click.option(
    "--timeout", type=click.FloatRange(1), default=3600.0, show_default=True,
    help="Seconds for one artifact on one runtime.",
)  # fmt: skip
@standard
def command(
    artifacts: tuple[Path, ...],
    reference: Path | None,
    base: str | None,
    adapter: tuple[str, ...],
    beside: Path | None,
    merge_onto: MergeBase | None,
    trained_on: str | None,
    data: str | None,
    examples: int | None,
    max_tokens: int | None,
    window: int,
    runtime: str | None,
    threads: int | None,
    gates: tuple[str, ...],
    devices: tuple[str, ...],
    task: str | None,
    task_data: str | None,
    task_examples: int,
    task_tokens: int,
    no_quantized_base: bool,
    timeout: float,
    as_json: bool,
) -> None:
    """Measure what ARTIFACTs lost of the model they were made from.

    Perplexity, KL divergence and agreement against the merged float model on
    the same held-out tokens, how much of the adapter's effect is left, and
    your own task metric. An artifact that fails a gate ends with exit code 1.

    A .txt file is scored as llama.cpp's perplexity tool does it.

    \b
    edgeadapt evaluate model.gguf --reference runs/demo
    edgeadapt evaluate m.gguf onnx --base default --adapter a --data held.jsonl
    """
    from edgeadapt.pipeline.evaluation import Settings, change_gates, evaluate_artifacts
    from edgeadapt.pipeline.verdicts import raise_failures
    from edgeadapt.report.tables import fidelity_tables
    from edgeadapt.report.terminal import draw
    from edgeadapt.training.settings import parse_assignments

    subject = _subject(reference, base, adapter, data)
    subject = replace(
        subject,
        onto=merge_onto or subject.onto,
        trained_on=trained_on or subject.trained_on,
        examples=examples or subject.examples,
        max_tokens=max_tokens or subject.max_tokens,
        gates=change_gates(subject.gates, parse_assignments(gates, option="--gate")),
    )
    asked = _task(task, task_data, task_examples, task_tokens, subject)
    settings = Settings(runtime, threads, timeout, window, not no_quantized_base, devices, beside)
    document = evaluate_artifacts(artifacts, subject, settings, asked)
    if as_json:
        emit_json(document)
    else:
        tables = [table for table in fidelity_tables(document["artifacts"]) if table.rows]
        emit(draw(tables, [_summary(document)]))
    raise_failures(document["failures"])


def _subject(
    run: Path | None, base: str | None, adapter: tuple[str, ...], data: str | None
) -> Subject:
    from edgeadapt.adapters import parse_adapters
    from edgeadapt.base_model import resolve_base
    from edgeadapt.data.source import held_out_part
    from edgeadapt.pipeline.evaluation import subject_of, subject_of_run

    if (run is None) == (base is None):
        raise InputError("give --reference RUN, or --base B with --adapter and --data")
    if run is not None and adapter:
        raise InputError("the run names its adapter; give --adapter with --base only")
    subject = (
        subject_of_run(run) if run else subject_of(resolve_base(str(base)), parse_adapters(adapter))
    )
    if data is None:
        return subject
    path = held_out_part(data)
    return replace(subject, data=path, examples=None if path.suffix == ".txt" else 128)


def _task(
    metric: str | None, data: str | None, examples: int, max_tokens: int, subject: Subject
) -> Task | None:
    from edgeadapt.data.source import held_out_part
    from edgeadapt.fidelity.task import Task

    if metric is None:
        if data is not None:
            raise InputError("--task-data needs --task: which metric to measure on it")
        return None
    path = held_out_part(data) if data else subject.data
    if path is None:
        raise InputError("--task needs questions and answers; give --task-data")
    return Task(metric, path, examples, max_tokens, subject.system)


def _summary(document: dict[str, Any]) -> str:
    """What the tables do not say."""
    reference = document["reference"]
    named = ", ".join(
        f"{state} {figure['value']:.2f}" for state, figure in reference["perplexity"].items()
    )
    return f"{reference['tokens']} held-out tokens; perplexity in float32: {named}"
