"""`edgeadapt plan`: on a tiny model, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from edgeadapt.cli import cli
from tests.tiny import save_llama


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("plan") / "base")


def plan(base: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["plan", "--base", str(base), *arguments])


def test_the_table_fits_names_the_choice_and_says_how_to_make_it(base: Path) -> None:
    result = plan(base, "--device", "raspberry-pi-5")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert max(map(len, lines[:-1])) <= 80
    assert sum(line.startswith(">") for line in lines) == 1
    assert lines[-1].startswith("make it: edgeadapt export --base ")
    assert "80% intervals" in result.stdout.replace("\n", " ")
    for figure in ("Without a source in the profile", "~17.1"):
        assert figure in result.stdout


def test_json_is_one_document(base: Path) -> None:
    result = plan(base, "--device", "apple-m2", "--context", "128", "--json")
    document = json.loads(result.stdout)
    assert document["device"] == "apple-m2" and document["context"] == 128
    assert document["choice"]["gpu_layers"] == "all"
    exact = {c["format"]: c["size_exact"] for c in document["candidates"]}
    assert exact == {"gguf": True, "onnx": False}


def test_flags_are_budgets(base: Path) -> None:
    result = plan(base, "--device", "raspberry-pi-5", "--min-decode-tps", "1e9", "--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["choice"] is None
    assert document["budget"]["min_decode_tps"] == 1e9
    assert "--min-decode-tps" in document["reason"]
    small = plan(base, "--device", "raspberry-pi-5", "--max-memory", "1M")
    assert small.exit_code == 1
    assert "does not fit" in small.stdout.replace("\n", " ")
    assert "make it" not in small.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--device", "toaster"), "no device profile"),
        (("--device", "ar1-glasses"), "runs no model"),
        (("--device", "raspberry-pi-5", "--context", "4096"), "made for 256 tokens"),
        (("--device", "raspberry-pi-5", "--max-memory", "much"), "much"),
    ],
)
def test_bad_input_ends_in_one_sentence(base: Path, arguments: tuple[str, ...], says: str) -> None:
    result = plan(base, *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    assert says in result.stderr


def test_plan_and_devices_need_no_torch(base: Path) -> None:
    from tests.test_imports import BLOCK, run

    program = f"""
from edgeadapt.cli import cli
for arguments in (["devices", "list"], ["plan", "--base", {str(base)!r}, "--device", "apple-m1"]):
    try:
        cli(arguments, prog_name="edgeadapt")
    except SystemExit as stop:
        assert not stop.code
"""
    assert "make it" in run(BLOCK + program)
