"""`edgeadapt merge`."""

from __future__ import annotations

from pathlib import Path

import click

from edgeadapt.cli.common import MergeOptions, merge_options, model_options, standard
from edgeadapt.console import emit, emit_json


@click.command()
@model_options(adapter_required=True)
@merge_options
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Stored type; the 16-bit ones round what was merged.",
)
@standard
def command(
    base: str,
    adapter: tuple[str, ...],
    revision: str | None,
    any_base: bool,
    merging: MergeOptions,
    out: Path,
    dtype: str,
    as_json: bool,
) -> None:
    """Merge an adapter into its base and write plain safetensors.

    Tensors are merged one at a time in float32: memory does not grow with the
    model. Only the tensors that the adapter changes differ from the base's.
    """
    from edgeadapt.merge import merge_to_folder

    model = merging.open(base, adapter, revision, any_base)
    artifact = merge_to_folder(model, out, dtype=dtype)
    if as_json:
        emit_json({"path": str(out), "bytes": artifact.size_bytes, "lineage": artifact.lineage})
    else:
        emit(f"{out}: {artifact.size_bytes / 2**20:.1f} MiB, {dtype}")
