"""`edgeadapt compare`."""

from __future__ import annotations

from pathlib import Path

import click

from edgeadapt.cli.common import end_when_asked, standard
from edgeadapt.console import emit, emit_json
from edgeadapt.errors import RuntimeFailure


@click.command()
@click.argument("recipe")
@click.option(
    "--runs",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Folder that comparisons lie in.",
)
@click.option(
    "--ray",
    metavar="ADDRESS",
    help="Do trials as tasks of a Ray cluster: auto, HOST:PORT, ray://HOST:PORT, or "
    "local to start one here. Without it, one after another.",
)
@standard
def command(recipe: str, runs: Path, ray: str | None, as_json: bool) -> None:
    """Methods side by side: what each costs, and gains, on each device.

    RECIPE is a YAML file that names methods (none, few-shot, rag, prompt,
    prefix, ia3, adapter, lora, qlora, dora, rslora, full), seeds, shares of
    the data, quantizations and devices; or `compare-demo`. Each is trained,
    exported and asked the same held-out questions on its runtime. Each device
    gets a recommendation with its margin of error; where the data do not
    decide, it says so. After a kill, the same command goes on; a method that
    fails is told, and the others are compared.

    \b
    edgeadapt compare compare-demo
    edgeadapt compare my-comparison.yaml --json > compare.json
    edgeadapt compare my-comparison.yaml --ray auto
    """
    from edgeadapt.comparison.recipe import load_comparison
    from edgeadapt.comparison.run import compare_methods
    from edgeadapt.report.comparison import comparison_summary

    end_when_asked()
    loaded = load_comparison(recipe)
    root = runs / loaded.name
    if ray is None:
        document = compare_methods(loaded, root)
    else:
        from edgeadapt.comparison.cluster.connection import ray_cluster

        with ray_cluster(ray) as execute:
            document = compare_methods(loaded, root, execute=execute)
    if as_json:
        emit_json(document)
    else:
        emit(comparison_summary(document))
        emit(f"report: {root / 'report.html'}")
    if document["failed"]:
        labels = ", ".join(dict.fromkeys(str(one["label"]) for one in document["failed"]))
        raise RuntimeFailure(f"failed: {labels}; type the same command again to retry")
