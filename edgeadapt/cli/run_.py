"""`edgeadapt run`."""

from __future__ import annotations

from pathlib import Path

import click

from edgeadapt.cli.common import standard
from edgeadapt.console import emit, emit_json


@click.command()
@click.argument("recipe")
@click.option("--show", is_flag=True, help="Only print the recipe, as a file to copy and change.")
@click.option("--resume", is_flag=True, help="Continue where an interrupted run stopped.")
@click.option(
    "--runs",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Folder that runs lie in.",
)
@standard
def command(recipe: str, show: bool, resume: bool, runs: Path, as_json: bool) -> None:
    """Train, export, evaluate, measure and report, all from one recipe.

    RECIPE is a YAML file, or a built-in one: `demo` (QLoRA), `instruct` (LoRA on
    conversations, packed, with a system prompt) or `full` (all weights). Each
    stage has a folder named by the hash of its inputs, so a second run does only
    what changed. After a kill, --resume continues in the middle of training.
    If an artifact fails one of the recipe's gates, it ends with exit code 1.

    \b
    edgeadapt run demo
    edgeadapt run instruct --show > recipe.yaml
    edgeadapt run recipe.yaml --resume
    """
    from edgeadapt.recipe import load_recipe, recipe_text

    if show:
        emit(recipe_text(recipe).rstrip("\n"))
        return
    from edgeadapt.pipeline import run_recipe
    from edgeadapt.pipeline.verdicts import raise_failures
    from edgeadapt.report import summary

    loaded = load_recipe(recipe)
    root = runs / loaded.name
    results = run_recipe(loaded, root, resume=resume)
    document = results.document()
    if as_json:
        emit_json(document)
    else:
        emit(summary(document))
        emit(f"report: {root / 'report.html'}")
    raise_failures(document["failures"])
