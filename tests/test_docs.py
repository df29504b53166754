"""What in docs/ is generated is current, and the README names no command or option that is gone."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from pathlib import Path

import click
import pytest

from edgeadapt.cli import cli
from edgeadapt.recipe import Recipe

ROOT = Path(__file__).parent.parent
GENERATED = runpy.run_path(str(ROOT / "docs/generate.py"))["generated"]()
GUIDES = ("README.md", "CONTRIBUTING.md", "docs/walkthroughs.md")


@pytest.mark.parametrize("name", GENERATED)
def test_it_is_current(name: str) -> None:
    stored = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert stored == GENERATED[name], "type: make docs"


def test_schemas_describe_what_is_written() -> None:
    schema = json.loads(GENERATED["recipe.schema.json"])
    assert set(schema["properties"]) == set(Recipe.model_fields)
    assert "decode_tps" in json.loads(GENERATED["measurement.schema.json"])["properties"]


def commands(text: str) -> list[list[str]]:
    """Words of every `edgeadapt ...` line in the console blocks of a Markdown text."""
    found = []
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0] == "edgeadapt":
                found.append(words[1:])
    return found


@pytest.mark.parametrize("guide", GUIDES)
def test_every_command_and_option_of_the_guides_is_there(guide: str) -> None:
    found = commands((ROOT / guide).read_text(encoding="utf-8"))
    assert guide != "README.md" or len(found) > 30
    for words in found:
        command: click.Command = cli
        rest = list(words)
        while isinstance(command, click.Group):
            context = click.Context(command)
            inner = command.get_command(context, rest.pop(0))
            assert inner is not None, f"{guide}: there is no edgeadapt {' '.join(words)}"
            command = inner
        known = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
        for word in rest:
            if word.startswith("--"):
                assert word.split("=")[0] in known, f"{guide}: {word} in {' '.join(words)}"
