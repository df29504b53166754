"""The wheel, built from the sdist, in an empty environment far from the repository.

First the base install, as on a board, then each extra with one command that needs it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeadapt.export import export, open_model
from edgeadapt.extras import _EXTRA_OF
from edgeadapt.files import cache_dir
from tests.bundle.conftest import made, run_base, run_folder
from tests.import_all import IMPORT_ALL

__all__ = ["made", "run_base", "run_folder"]

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
SHIPPED = (
    "py.typed", "device_profiles/raspberry-pi-5.yaml", "report/report.html.jinja",
    "prediction/fitted.json", "recipes/demo.yaml", "converters/onnx/constraints-optimum.txt",
    "setup/aarch64/greedy.cpp", "setup/board_install.sh.txt", "setup/llama_tools/CMakeLists.txt",
    "bundle/loading/gguf/Android.kt.txt", "runtimes/llama_cpp/session.py",
)  # fmt: skip

TELL = """
import json
assert "site-packages" in edgeadapt.__file__, edgeadapt.__file__
print(json.dumps([found, sorted(set(absent.values()))]))
"""


CACHE = cache_dir()
"""The user's own, not the one that each test gets: a built llama.cpp is in it."""

BUILD_SDIST = """
import os, sys
os.chdir(sys.argv[1])
from setuptools.build_meta import build_sdist
build_sdist("..")
"""


def call(*words: object, expected: int = 0, **environment: str) -> str:
    """What a program prints; on stderr too, if it is expected to fail."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, check=False,
        env=kept | environment,
    )  # fmt: skip
    assert done.returncode == expected, done.stdout + done.stderr
    return done.stderr if expected else done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist of a copy, in which a build leaves what it likes."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    tracked = call("git", "-C", ROOT, "ls-files", "-z").split("\0")
    for name in filter(None, tracked):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, source / name, follow_symlinks=False)
    backend = folder / "backend"
    call(sys.executable, "-m", "pip", "install", "-q", "--target", backend, "setuptools>=77")
    call(sys.executable, "-c", BUILD_SDIST, source, PYTHONPATH=str(backend))
    (sdist,) = folder.glob("*.tar.gz")
    call(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, sdist)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def python(wheel: Path) -> Path:
    """An environment with the wheel and its base dependencies alone."""
    place = wheel.parent / "venv"
    call(sys.executable, "-m", "venv", place)
    python = place / "bin/python"
    call(python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel)
    return python


def test_it_carries_what_is_read_at_run_time(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert not {f"edgeadapt/{name}" for name in SHIPPED} - names
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {"edgeadapt"}


def test_the_base_install_plans_and_verifies(
    python: Path, tiny_model: Path, tmp_path: Path
) -> None:
    command = python.with_name("edgeadapt")
    home = {"EDGEADAPT_CACHE": str(tmp_path / "cache")}
    assert len(json.loads(call(command, "devices", "list", "--json", **home))) >= 30
    assert "BUNDLE" in call(command, "verify", "--help", **home)
    plan = call(
        command, "plan", "--base", tiny_model, "--device", "raspberry-pi-5", "--json", **home
    )
    assert json.loads(plan)["choice"]
    installed = call(python, "-m", "pip", "list", "--format", "freeze")
    assert "torch" not in installed and "transformers" not in installed


def test_every_module_imports_or_names_a_library_of_an_extra(python: Path) -> None:
    found, absent = json.loads(call(python, "-P", "-c", IMPORT_ALL + TELL))
    assert found > 200
    assert set(absent) <= set(_EXTRA_OF), absent


Check = Callable[[Callable[..., str], Path], None]
"""Gets what runs `edgeadapt`, and a folder with `tiny`, a model, `onnx`, made of it, and `made`, a
bundle."""

MODEL = ("--base", "tiny", "--format")


def _tokenizers(edgeadapt: Callable[..., str], folder: Path) -> None:
    program = (
        "from pathlib import Path; from edgeadapt.tokenizer import ModelTokenizer; "
        "print(ModelTokenizer.from_folder(Path('tiny')))"
    )
    assert "ModelTokenizer" in edgeadapt("-c", program)


def _report(edgeadapt: Callable[..., str], folder: Path) -> None:
    program = (
        "from edgeadapt.report.charts import charts; "
        "print(charts({'adapter': {'losses': [3.0, 2.0, 1.0]}, 'artifacts': [], "
        "'measurements': []})[0].svg[:4])"
    )
    assert "<svg" in edgeadapt("-c", program)


def _smollm2(edgeadapt: Callable[..., str], folder: Path) -> None:
    plan = edgeadapt("plan", "--base", "default", "--device", "raspberry-pi-5", "--json")
    assert json.loads(plan)["choice"]


def _sign(edgeadapt: Callable[..., str], folder: Path) -> None:
    (folder / "key.pub").write_text("no key")
    told = edgeadapt("verify", "made", "--public-key", "key.pub", expected=1)
    assert "there is no signature" in told


def _registry(edgeadapt: Callable[..., str], folder: Path) -> None:
    told = edgeadapt("push", "made", "oci://127.0.0.1:9/demo:v1", expected=2)
    assert "cannot reach 127.0.0.1:9" in told


def _onnx(edgeadapt: Callable[..., str], folder: Path) -> None:
    edgeadapt("chat", "onnx", "--prompt", "Hello", "--max-tokens", "4")


def _llama_cpp(edgeadapt: Callable[..., str], folder: Path) -> None:
    edgeadapt("export", *MODEL, "gguf", "--quant", "F16", "--out", "tiny.gguf")
    edgeadapt("chat", "tiny.gguf", "--prompt", "Hello", "--max-tokens", "4")


def _convert(edgeadapt: Callable[..., str], folder: Path) -> None:
    edgeadapt(
        "export", *MODEL, "onnx", "--quant", "fp32", "--exporter", "builder", "--out", "built"
    )


def _train(edgeadapt: Callable[..., str], folder: Path) -> None:
    rows = [{"text": "The quick brown fox jumps over the lazy dog."}] * 8
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    edgeadapt(
        "train", "--base", "tiny", "--data", "data.jsonl", "--method", "lora", "--max-steps", "1",
        "--out", "adapter",
    )  # fmt: skip


def _retrieve(edgeadapt: Callable[..., str], folder: Path, retriever: str = "bm25") -> None:
    (folder / "guide.md").write_text("A red lamp means that the filter is full.")
    (folder / "asked.jsonl").write_text('{"prompt": "Red lamp?", "completion": "Full."}')
    told = edgeadapt(
        "prompt", "retrieve", "--base", "tiny", "--documents", "guide.md", "--data", "asked.jsonl",
        "--out", f"{retriever}.jsonl", "--retriever", retriever, "--json",
    )  # fmt: skip
    assert json.loads(told)["retrieval"]["retrieved_mean"] == 1


def _embeddings(edgeadapt: Callable[..., str], folder: Path) -> None:
    _retrieve(edgeadapt, folder, "embeddings")


def _ray(edgeadapt: Callable[..., str], folder: Path) -> None:
    told = edgeadapt("compare", "compare-demo", "--ray", "auto", expected=2)
    assert "no Ray cluster answers at 'auto'" in told


EXTRAS: dict[str, Check] = {
    "tokenizers": _tokenizers,
    "retrieval": _retrieve,
    "report": _report,
    "smollm2": _smollm2,
    "sign": _sign,
    "registry": _registry,
    "onnx": _onnx,
    "llama-cpp": _llama_cpp,
    "convert": _convert,
    "train": _train,
    "embeddings": _embeddings,
    "ray": _ray,
}
"""In the order in which they are installed on top of each other, the largest last."""


def test_every_extra_is_tried() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(project["optional-dependencies"]) - {"all", "dev", "fuzz"} == set(EXTRAS)


@pytest.fixture(scope="module")
def reader(tiny_model: Path, made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, its ONNX artifact and a bundle."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(tiny_model, folder / "tiny")
    shutil.copytree(made, folder / "made")
    export(open_model(str(tiny_model)), "onnx", "int4", folder / "onnx")
    return folder


@pytest.mark.skipif("EDGEADAPT_TEST_SLOW" not in os.environ, reason="minutes: make test-slow")
@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_brings_what_its_command_needs(
    python: Path, wheel: Path, reader: Path, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(reader)

    def edgeadapt(*words: object, **options: Any) -> str:
        return call(python, "-P", *(() if words[0] == "-c" else ("-m", "edgeadapt")), *words,
                    EDGEADAPT_CACHE=str(CACHE), **options)  # fmt: skip

    if extra == "llama-cpp":
        edgeadapt("setup", "llama-cpp", PIP_CONSTRAINT=str(ROOT / "constraints.txt"))
    call(python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", f"{wheel}[{extra}]")
    EXTRAS[extra](edgeadapt, reader)
