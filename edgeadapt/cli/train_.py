"""`edgeadapt train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeadapt.cli.common import standard
from edgeadapt.console import emit, emit_json, log
from edgeadapt.errors import InputError

_METHODS = (
    "qlora", "lora", "dora", "rslora", "adapter", "houlsby", "pfeiffer", "ia3", "prefix", "prompt",
    "full",
)  # fmt: skip


@click.command(short_help="Train an adapter (QLoRA by default) or the full model.")
@click.option(
    "--base",
    required=True,
    metavar="B",
    help="Base model: a folder, a GGUF file, a hub id, or 'default'.",
)
@click.option("--revision", help="Branch, tag or commit of a hub id.")
@click.option(
    "--data",
    required=True,
    metavar="D",
    help="Training data: a .jsonl, .csv or .parquet file, a folder, or 'python-docs'.",
)
@click.option(
    "--held-out",
    metavar="H",
    help="Data to score before and after, never trained on ('python-docs' brings its own).",
)
@click.option(
    "--method",
    type=click.Choice(_METHODS),
    default="qlora",
    show_default=True,
    metavar="NAME",
    help=f"What to train: {', '.join(_METHODS)}.",
)
@click.option(
    "--teacher", metavar="M",
    help="Learn this model's predictions (KL divergence) instead of the data's answers: "
    "distillation, or recovery of a quantized base.",
)  # fmt: skip
@click.option(
    "--teacher-adapter", metavar="DIR", type=click.Path(path_type=Path),
    help="With --teacher: an adapter merged into it.",
)  # fmt: skip
@click.option("--max-steps", type=int, metavar="N", help="Optimizer steps; wins over --epochs.")
@click.option("--epochs", type=float, help="Passes over the data.  [default: 1]")
@click.option("--batch-size", type=int, help="Examples in a batch.  [default: 4]")
@click.option("--gradient-accumulation", type=int, help="Batches in a step.  [default: 1]")
@click.option("--learning-rate", type=float, help="Peak rate.  [default: by method]")
@click.option("--r", type=int, help="Rank of LoRA's matrices.  [default: 16]")
@click.option("--alpha", type=float, help="LoRA's updates count alpha/r.  [default: 32]")
@click.option("--max-tokens", type=int, help="Cut longer examples.  [default: 512]")
@click.option("--held-out-examples", type=int, help="Held-out examples to score.  [default: 128]")
@click.option("--seed", type=int, help="Seed of everything random.  [default: 0]")
@click.option(
    "--set",
    "other",
    multiple=True,
    metavar="NAME=VALUE",
    help="Any other training setting, such as warmup=0.1; repeatable.",
)
@click.option(
    "--processes", type=click.IntRange(min=1), default=1, metavar="N",
    help="Train in N processes of this machine, which share each batch (DDP): one for each GPU, "
    "or on CPUs.",
)  # fmt: skip
@click.option(
    "--shard", is_flag=True,
    help="With --processes: each holds a share of the model too, of its gradients and of the "
    "optimizer's state (FSDP2).",
)  # fmt: skip
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Keep checkpoints in this folder instead of a hidden one beside --out.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder to make.",
)
@standard
def command(
    base: str,
    revision: str | None,
    data: str,
    held_out: str | None,
    teacher: str | None,
    teacher_adapter: Path | None,
    out: Path,
    work: Path | None,
    processes: int,
    shard: bool,
    other: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Train on chat messages, prompt/completion pairs or plain text.

    The model's chat template is applied, and only the answers count. If the run is
    killed, the same command goes on from its newest checkpoint. DIR becomes a plain
    PEFT adapter (for 'full', a plain model folder) with its history in
    edgeadapt.json.

    A GGUF file as the base is trained on as its quantized weights are: what is
    then shipped beside it, with export --adapter-mode separate, loses nothing.

    \b
    edgeadapt train --base default --data python-docs --out adapter
    edgeadapt train --base m.Q2_K.gguf --teacher default \\
        --data chats.jsonl --method lora --out recovery
    """
    from edgeadapt.base_model import resolve_base
    from edgeadapt.data.source import held_out_part, resolve_data
    from edgeadapt.export import open_model
    from edgeadapt.training.methods import METHODS
    from edgeadapt.training.processes import train_in_processes
    from edgeadapt.training.settings import parse_assignments, train_settings
    from edgeadapt.training.train import train
    from edgeadapt.training.world import this_world

    given = {name: value for name, value in options.items() if value is not None}
    settings = train_settings(given | parse_assignments(other))
    train_data, own_held_out = resolve_data(data)
    if held_out:
        own_held_out = held_out_part(held_out)
    folder = resolve_base(base, revision=revision)
    if METHODS[settings.method].nf4_base and base.endswith(".gguf"):
        log.warning(
            "%s is quantized already, and qlora quantizes it once more while training; --method "
            "lora trains on exactly its weights", base,
        )  # fmt: skip
    if teacher_adapter is not None and teacher is None:
        raise InputError("--teacher-adapter needs --teacher: the model that it belongs to")
    if shard and processes == 1:
        raise InputError("--shard needs processes to share the model: add --processes 2 or more")
    if processes > 1:
        record = train_in_processes(
            processes, folder, train_data, own_held_out, settings, out, base_spec=base, work=work,
            teacher=(teacher, teacher_adapter) if teacher is not None else None, shard=shard,
        )  # fmt: skip
    else:
        record = train(
            folder, train_data, own_held_out, settings, out, base_spec=base, work=work,
            teacher=open_model(teacher, teacher_adapter) if teacher is not None else None,
        ).record  # fmt: skip
    if not this_world().leads:
        return
    if as_json:
        emit_json({"path": str(out)} | record)
        return
    emit(f"{out}: {settings.method}, {record['steps']} steps")
    if record["held_out"]:
        before, after = (record["held_out"][key] for key in ("before", "after"))
        emit(f"held-out perplexity {before['perplexity']:.2f} -> {after['perplexity']:.2f}")
