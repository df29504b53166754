"""Write what in this folder is generated: `python docs/generate.py`.

- cli.md: the help of every command.
- recipe.schema.json, comparison.schema.json, measurement.schema.json, manifest.schema.json: JSON
  schemas, for editors and for those who read what edgeadapt writes.

`tests/test_docs.py` sees that they are current.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel

from edgeadapt.bench.measurement import Measurement
from edgeadapt.bundle.manifest import schema_text
from edgeadapt.cli import cli
from edgeadapt.comparison.recipe import ComparisonRecipe
from edgeadapt.recipe import Recipe

FOLDER = Path(__file__).parent
_WIDTH = 80


def generated() -> dict[str, str]:
    """Every generated file's text, by name."""
    return {
        "cli.md": cli_reference(),
        "recipe.schema.json": _schema(Recipe),
        "comparison.schema.json": _schema(ComparisonRecipe),
        "measurement.schema.json": _schema(Measurement),
        "manifest.schema.json": schema_text(),
    }


def cli_reference() -> str:
    """The help of every command, in Markdown."""
    lines = [
        "# Command line", "",
        "Every command takes `--json` (one document on stdout), `-q`, `-v` and `--debug`. Exit "
        "codes: 0, 1 for a failed gate, 2 for input that cannot be served.",
    ]  # fmt: skip
    for names, text in _helps(cli, ["edgeadapt"], None):
        lines += ["", f"{'#' * min(len(names) + 1, 4)} {' '.join(names)}", "", "```", text, "```"]
    return "\n".join(lines) + "\n"


def _helps(
    command: click.Command, names: list[str], parent: click.Context | None
) -> Iterator[tuple[list[str], str]]:
    context = click.Context(
        command, parent=parent, info_name=names[-1],
        terminal_width=_WIDTH, max_content_width=_WIDTH,
        help_option_names=["-h", "--help"],
    )  # fmt: skip
    yield names, command.get_help(context).rstrip()
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if inner is not None and not inner.hidden:
                yield from _helps(inner, [*names, name], context)


def _schema(model: type[BaseModel]) -> str:
    schema: dict[str, Any] = model.model_json_schema()
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for name, text in generated().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
