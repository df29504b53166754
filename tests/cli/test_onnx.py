"""ONNX on the command line: what was asked for is in the folder, and mistakes end in a sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from edgeadapt.cli import cli
from tests.onnx_folders import exported

pytest.importorskip("onnxruntime_genai")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def export(model: Path, out: Path, *arguments: object) -> Result:
    return run("export", "--base", model, "--out", out, *arguments, "--json", "-q")


def test_options_reach_the_artifact(tiny_model: Path, tmp_path: Path) -> None:
    chosen = ("--algorithm", "k_quant", "--block-size", 16, "--accuracy-level", 1)
    result = export(tiny_model, tmp_path / "m", "--format", "onnx", "--quant", "int4", *chosen)
    assert result.exit_code == 0, result.output
    settings = json.loads(result.stdout)["lineage"]["settings"]
    assert settings["algorithm"] == "k_quant" and settings["symmetric"] is False
    assert settings["block_size"] == 16 and settings["accuracy_level"] == 1


def test_a_device_brings_its_session_options(tiny_model: Path, tmp_path: Path) -> None:
    result = export(tiny_model, tmp_path / "m", "--device", "meta-quest-3")
    assert result.exit_code == 0, result.output
    genai = json.loads((tmp_path / "m" / "genai_config.json").read_text())
    options = genai["model"]["decoder"]["session_options"]
    assert options["intra_op_num_threads"] == 2
    assert options["session.intra_op.allow_spinning"] == "0"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--format", "gguf", "--quant", "Q8_0", "--algorithm", "rtn"), "are for --format onnx"),
        (("--format", "onnx", "--quant", "fp32", "--block-size", "32"), "--block-size is for"),
        (("--format", "onnx", "--quant", "int4", "--exporter", "optimum"), "setup optimum"),
        (("--format", "onnx", "--quant", "int2"), "int8-dynamic, int4"),
    ],
)
def test_bad_requests(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    word: str,
) -> None:
    monkeypatch.setenv("EDGEADAPT_OPTIMUM", str(tmp_path / "none"))
    result = export(tiny_model, tmp_path / "m", *arguments)
    assert result.exit_code == 2
    assert word in result.stderr and result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("provider", "word"), [("cuda", "no execution provider cuda"), ("abacus", "'abacus'")]
)
def test_provider_that_is_not_there(tiny_model: Path, provider: str, word: str) -> None:
    folder = exported(tiny_model, "fp32").path
    result = run("chat", folder, "--prompt", "hi", "--context", 64, "--provider", provider)
    assert result.exit_code == 2
    assert word in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data"])
def test_damaged_graph(tiny_model: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(exported(tiny_model, "fp32").path, tmp_path / "copy")
    (tmp_path / "copy" / name).write_bytes(b"no graph")
    result = run("bench", tmp_path / "copy", "--runtime", "onnxruntime", "--repetitions", 1, "-q")
    assert result.exit_code == 2
    assert "export again" in result.stderr and result.stderr.count("\n") == 1
