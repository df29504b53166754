"""The wheel in an empty environment, far from the repository: the base install, as on a board."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edgeadapt.extras import _EXTRA_OF

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
SHIPPED = (
    "py.typed", "device_profiles/raspberry-pi-5.yaml", "report/report.html.jinja",
    "prediction/fitted.json", "recipes/demo.yaml", "converters/onnx/constraints-optimum.txt",
    "setup/aarch64/greedy.cpp", "setup/board_install.sh.txt", "setup/llama_tools/CMakeLists.txt",
    "bundle/loading/gguf/Android.kt.txt", "runtimes/llama_cpp/session.py",
)  # fmt: skip

IMPORT_ALL = """
import importlib, json, pkgutil, edgeadapt
found, absent = 0, set()
for module in pkgutil.walk_packages(edgeadapt.__path__, "edgeadapt."):
    if module.name.endswith("__main__"):
        continue
    try:
        importlib.import_module(module.name)
        found += 1
    except ModuleNotFoundError as error:
        absent.add(error.name)
assert "site-packages" in edgeadapt.__file__, edgeadapt.__file__
print(json.dumps([found, sorted(absent)]))
"""


def call(*words: object, **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, check=False,
        env=kept | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, in which a build leaves what it likes."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    tracked = call("git", "-C", ROOT, "ls-files", "-z").split("\0")
    for name in filter(None, tracked):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, source / name, follow_symlinks=False)
    call(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, source)
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
    found, absent = json.loads(call(python, "-P", "-c", IMPORT_ALL))
    assert found > 200
    assert set(absent) <= set(_EXTRA_OF), absent
