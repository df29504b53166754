"""`edgeadapt imatrix`."""

from __future__ import annotations

from pathlib import Path

import click

from edgeadapt.cli.common import end_when_asked, model_options, standard
from edgeadapt.console import emit, emit_json


@click.command()
@model_options(adapter_required=False)
@click.option(
    "--data",
    required=True,
    help="What the model will be used on: a dataset, a .txt file, or `python-docs`.",
)
@click.option(
    "--chunks",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="Most chunks of 512 tokens, evenly spaced over the data.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A .gguf file.")
@standard
def command(
    base: str,
    adapter: tuple[str, ...],
    revision: str | None,
    any_base: bool,
    data: str,
    chunks: int,
    out: Path,
    as_json: bool,
) -> None:
    """Measure which weights matter on your own text, for better low-bit files.

    The model, with the adapter merged in, reads the text in float32. What its
    layers see, squared and summed for each input column, is written in
    llama.cpp's format, for `export --imatrix` or llama-quantize.

    \b
    edgeadapt imatrix --base default --adapter a --data chats.jsonl --out i.gguf
    edgeadapt export --base default --adapter a --imatrix i.gguf \\
        --format gguf --quant IQ2_M --out model.gguf
    """
    from edgeadapt.calibration import make_imatrix
    from edgeadapt.data.source import resolve_data
    from edgeadapt.export import open_model

    end_when_asked()
    model = open_model(base, adapter, revision=revision, any_base=any_base)
    made = make_imatrix(model, resolve_data(data)[0], out, chunks=chunks)
    if as_json:
        emit_json(
            {
                "path": str(out),
                "entries": len(made.entries),
                "chunks": made.chunk_count,
                "chunk_tokens": made.chunk_size,
                "datasets": list(made.datasets),
            }
        )
        return
    emit(f"{out}: {len(made.entries)} tensors, {made.chunk_count} chunks of {made.datasets[0]}")
