"""Every command's help and its `--json` form."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from edgeadapt.cli import cli

COMMANDS = cli.list_commands(click.Context(cli))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_a_terminal(command: str) -> None:
    result = CliRunner().invoke(cli, [command, "--help"], terminal_width=80)
    assert result.exit_code == 0
    assert all(len(line) <= 80 for line in result.output.splitlines())
    loaded = cli.get_command(click.Context(cli), command)
    assert loaded is not None and loaded.help


def test_the_list_of_commands_says_what_their_help_says() -> None:
    overview = CliRunner().invoke(cli, ["--help"]).output
    for command in COMMANDS:
        assert command in overview


def invoke(*arguments: object) -> dict[str, object]:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)  # one document, and nothing else, on stdout
    assert isinstance(document, dict)
    return document


def test_export_json(tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    out = tmp_path / "m.gguf"
    document = invoke(
        "export", "--base", tiny_model, "--device", "raspberry-pi-5", "--out", out, "--json"
    )
    assert document["quantization"] == "Q4_0" and "Raspberry Pi 5" in str(document["reason"])
    assert document["bytes"] == out.stat().st_size


def test_import_json(tiny_gguf: Path, tmp_path: Path) -> None:
    document = invoke("import", tiny_gguf, "--out", tmp_path / "m", "--json")
    assert document["model_type"] == "llama"
