"""`edgeadapt inspect`."""

from __future__ import annotations

import click

from edgeadapt.cli.common import standard
from edgeadapt.console import emit, emit_json


@click.command()
@click.argument("path")
@click.option("--base", help="Of an adapter: folder or GGUF file of its base, or `default`.")
@standard
def command(path: str, base: str | None, as_json: bool) -> None:
    """Say what a base, adapter, GGUF file or ONNX folder is.

    Of an adapter: method, rank and scaling of every group of modules, what it
    was trained on, and which formats can carry it, merged into the base or as
    a file of its own. Of a base: which formats it can be exported to. What
    cannot be is named with the reason, and what would be lost beside it.

    Nothing is changed, no tensor is loaded.

    \b
    edgeadapt inspect runs/demo/adapter
    edgeadapt inspect model.gguf --json
    """
    from edgeadapt.inspect import inspect_path, render

    report = inspect_path(path, base=base)
    if as_json:
        emit_json(report)
    else:
        emit(render(report))
