"""`edgeadapt import`: any base model as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

import click

from edgeadapt.cli.common import standard
from edgeadapt.console import emit, emit_json


@click.command("import")
@click.argument("model", metavar="MODEL")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder to make; it must not exist.",
)
@click.option("--revision", metavar="R", help="Branch, tag or commit of a hub id.")
@standard
def command(model: str, out: Path, revision: str | None, as_json: bool) -> None:
    """Turn MODEL into a Hugging Face folder at DIR.

    MODEL is a GGUF file (its weights are dequantized to float32), a hub id such as
    HuggingFaceTB/SmolLM2-135M-Instruct, a Hugging Face folder (copied), or the word `default` for
    the built-in SmolLM2-135M-Instruct.

    \b
    edgeadapt import default --out smollm2
    edgeadapt import model-Q8_0.gguf --out model
    """
    from edgeadapt.base_model import describe_base, import_base

    made = describe_base(import_base(model, out, revision=revision))
    if as_json:
        emit_json(made)
    else:
        emit(f"{made['path']}: {made['model_type']}, {made['parameters'] / 1e6:.1f} M parameters")
