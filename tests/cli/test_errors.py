"""Bad input to any command: one sentence, exit code 2, nothing left behind."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from peft import LoraConfig

from edgeadapt.cli import cli
from tests.adapters.test_merged import save_adapter
from tests.tiny import save_llama


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good inputs, and one broken copy of each kind."""
    root = tmp_path_factory.mktemp("inputs")
    base = save_llama(root / "base")
    save_llama(root / "wider", hidden=96, heads=6)
    lora = LoraConfig(r=4, target_modules=["q_proj", "down_proj"])
    adapter = save_adapter(base, root / "adapter", lora)
    save_adapter(root / "wider", root / "adapter-of-wider", lora)
    shutil.copytree(adapter, root / "pickled")
    (root / "pickled/adapter_model.safetensors").rename(root / "pickled/adapter_model.bin")
    for name, source, file in (
        ("truncated-base", base, "model.safetensors"),
        ("truncated-adapter", adapter, "adapter_model.safetensors"),
    ):
        shutil.copytree(source, root / name)
        path = root / name / file
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    shutil.copytree(base, root / "pickled-base")
    (root / "pickled-base/model.safetensors").rename(root / "pickled-base/pytorch_model.bin")
    (root / "half.gguf").write_bytes(b"GGUF\x03\x00\x00\x00" + b"\xff" * 16)
    (root / "text.gguf").write_text("not a model at all")
    (root / "bad.yaml").write_text("name: x\nexport: [\n")
    (root / "bad.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": \n')
    return root


Make = Callable[[Path], list[object]]
GGUF = ["--format", "gguf", "--quant", "Q8_0"]

CASES: dict[str, tuple[Make, str]] = {
    "missing base": (lambda p: ["export", "--base", p / "none", *GGUF], "does not exist"),
    "truncated base": (lambda p: ["export", "--base", p / "truncated-base", *GGUF], "safetensors"),
    "pickled base": (lambda p: ["export", "--base", p / "pickled-base", *GGUF], "safetensors"),
    "half a gguf": (lambda p: ["export", "--base", p / "half.gguf", *GGUF], "truncated"),
    "no gguf": (lambda p: ["export", "--base", p / "text.gguf", *GGUF], "not a GGUF"),
    "missing adapter": (
        lambda p: ["export", "--base", p / "base", "--adapter", p / "none", *GGUF],
        "does not exist",
    ),
    "truncated adapter": (
        lambda p: ["export", "--base", p / "base", "--adapter", p / "truncated-adapter", *GGUF],
        "adapter_model.safetensors",
    ),
    "pickled adapter": (
        lambda p: ["export", "--base", p / "base", "--adapter", p / "pickled", *GGUF],
        "pickle",
    ),
    "adapter for another base": (
        lambda p: ["export", "--base", p / "base", "--adapter", p / "adapter-of-wider", *GGUF],
        "give that base",
    ),
    "merge with another base": (
        lambda p: ["merge", "--base", p / "base", "--adapter", p / "adapter-of-wider"],
        "give that base",
    ),
    "unknown device": (
        lambda p: ["export", "--base", p / "base", "--device", "raspberry-pi-6"],
        "raspberry-pi-5",
    ),
    "unknown quantization": (
        lambda p: ["export", "--base", p / "base", "--format", "gguf", "--quant", "Q3"],
        "Q4_K_M",
    ),
    "no target": (lambda p: ["export", "--base", p / "base"], "--device"),
    "both targets": (
        lambda p: ["export", "--base", p / "base", "--device", "laptop-x86", *GGUF],
        "either",
    ),
    "import nothing": (lambda p: ["import", p / "none.gguf"], "does not exist"),
    "import half": (lambda p: ["import", p / "half.gguf"], "truncated"),
    "train on nothing": (
        lambda p: ["train", "--base", p / "base", "--data", p / "none.jsonl"],
        "does not exist",
    ),
    "train on half a line": (
        lambda p: ["train", "--base", p / "base", "--data", p / "bad.jsonl"],
        "line 2",
    ),
}


@pytest.mark.parametrize("name", list(CASES))
def test_bad_input(name: str, place: Path, tmp_path: Path) -> None:
    make, words = CASES[name]
    out = tmp_path / "out" / "result"
    result = run(*make(place), "--out", out)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    lines = result.stderr.strip().splitlines()
    assert lines[-1].startswith("Error: ") and words in lines[-1]
    assert "Traceback" not in result.output
    assert not out.parent.exists() or not list(out.parent.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "bad.yaml"], "line"),
        (["run", "none.yaml"], "demo"),
        (["bench", "none.gguf"], "does not exist"),
        (["bench", "half.gguf"], "truncated"),
        (["chat", "text.gguf", "--prompt", "hi"], "not a GGUF"),
        (["chat", "adapter", "--prompt", "hi"], "adapter"),
        (["devices", "show", "raspbery-pi-5"], "raspberry-pi-5"),
        (["devices", "validate", "bad.yaml"], "YAML"),
    ],
)
def test_bad_argument(arguments: list[str], words: str, place: Path) -> None:
    known = {path.name for path in place.iterdir()} | {"none.yaml", "none.gguf"}
    result = run(*(place / a if a in known else a for a in arguments))
    assert result.exit_code == 2, result.output
    assert result.stderr.strip().splitlines()[-1].startswith("Error: ")
    assert words in result.stderr


def test_debug_shows_the_traceback(place: Path, tmp_path: Path) -> None:
    arguments = ["export", "--base", place / "none", *GGUF, "--out", tmp_path / "x"]
    assert "Traceback" in run(*arguments, "--debug").output
    assert "Traceback" not in run(*arguments).output


@pytest.mark.parametrize("command", ["export", "merge"])
def test_an_existing_output_is_kept(command: str, place: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    out.write_text("precious")
    arguments = [command, "--base", place / "base", "--adapter", place / "adapter", "--out", out]
    result = run(*arguments, *(GGUF if command == "export" else []))
    assert result.exit_code == 2 and "exists already" in result.stderr
    assert out.read_text() == "precious"


def test_bench_does_not_write_over_the_model(place: Path, tmp_path: Path) -> None:
    model = shutil.copy(place / "text.gguf", tmp_path / "model.gguf")
    result = run("bench", model, "--out", model)
    assert result.exit_code == 2 and "exists already" in result.stderr
    assert Path(model).read_bytes() == (place / "text.gguf").read_bytes()
