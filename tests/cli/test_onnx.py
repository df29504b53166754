"""ONNX on the command line: what was asked for is in the folder, and mistakes end in a sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
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


def _shorter(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


DAMAGES: dict[str, tuple[Callable[[Path], None], str, str]] = {
    # what is done to which file, and what is said of it
    "corrupt graph": (lambda path: path.write_bytes(b"no graph"), "model.onnx", "8 bytes"),
    "no graph": (Path.unlink, "model.onnx", "missing"),
    "truncated graph": (_shorter, "model.onnx", "bytes, it was written with"),
    "no external data": (Path.unlink, "model.onnx.data", "model.onnx.data is missing"),
    "truncated data": (_shorter, "model.onnx.data", "model.onnx.data has"),
    "empty data": (lambda path: path.write_bytes(b""), "model.onnx.data", "has 0 bytes"),
}


def refused(artifact: Path, word: str, command: str, *arguments: object) -> None:
    result = run(command, artifact, *arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1 and result.stdout == ""
    assert str(artifact) in result.stderr and word in result.stderr
    assert result.stderr.endswith("export again\n")


@pytest.mark.parametrize("exporter", ["stream", "builder"])
@pytest.mark.parametrize("runtime", ["onnxruntime", "ort-genai"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folder(
    tiny_model: Path, tmp_path: Path, damage: str, runtime: str, exporter: str
) -> None:
    """Some damages show only while the engine builds the graph: its words are of no use then."""
    change, name, word = DAMAGES[damage]
    shutil.copytree(exported(tiny_model, "fp32", exporter).path, tmp_path / "copy")
    change(tmp_path / "copy" / name)
    refused(tmp_path / "copy", word, "chat", "--runtime", runtime, "--prompt", "hi")


def test_damaged_folder_in_a_child(tiny_model: Path, tmp_path: Path) -> None:
    """`bench` and `evaluate` run models in processes of their own."""
    copy, data = tmp_path / "copy", tmp_path / "held.jsonl"
    shutil.copytree(exported(tiny_model, "fp32").path, copy)
    _shorter(copy / "model.onnx.data")
    refused(copy, "model.onnx.data has", "bench", "--runtime", "onnxruntime", "-q")
    data.write_text(json.dumps({"prompt": "def main(x)", "completion": "return str(x)"}))
    more = ("--base", tiny_model, "--data", data, "--runtime", "ort-genai", "-q")
    refused(copy, "model.onnx.data has", "evaluate", *more)


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [("num_hidden_layers", 3, "past_key_values.2.key"), ("num_key_value_heads", 4, "expected 4"),
     ("head_size", 8, "expected 8")],
)  # fmt: skip
def test_config_of_another_graph(
    tiny_model: Path, tmp_path: Path, key: str, value: int, word: str
) -> None:
    shutil.copytree(exported(tiny_model, "fp32").path, tmp_path / "copy")
    path = tmp_path / "copy" / "genai_config.json"
    genai = json.loads(path.read_text())
    genai["model"]["decoder"][key] = value
    path.write_text(json.dumps(genai))
    refused(tmp_path / "copy", word, "chat", "--runtime", "onnxruntime", "--prompt", "hi")
