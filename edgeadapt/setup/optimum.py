"""Make the environment in which optimum exports: older libraries than ours, beside them."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from edgeadapt.console import log
from edgeadapt.converters.onnx.optimum import (
    CONSTRAINTS,
    READY,
    environment,
    environment_python,
    installed,
)
from edgeadapt.errors import RuntimeFailure
from edgeadapt.files import write_json

_PACKAGES = ("optimum-onnx", "accelerate", "torch", "onnx", "onnxruntime")
_PROOF = """
import importlib.metadata, json
import onnxruntime, optimum.exporters.onnx
names = ("optimum-onnx", "optimum", "transformers", "torch", "onnx", "onnxruntime")
print(json.dumps({name: importlib.metadata.version(name) for name in names}))
"""


@dataclass(frozen=True)
class OptimumSetup:
    """What `setup_optimum` did."""

    action: str
    """`kept` or `installed`."""
    folder: str
    versions: dict[str, str]


def setup_optimum(*, rebuild: bool = False) -> OptimumSetup:
    """See that optimum's environment is there; pip's settings and variables apply.

    Args:
        rebuild: make it anew even if it is there.

    Raises:
        RuntimeFailure: making it failed.
    """
    folder, versions = environment(), installed()
    if versions is not None and not rebuild:
        return OptimumSetup("kept", str(folder), versions)
    log.info("making %s", folder)
    _run(sys.executable, "-m", "venv", "--clear", str(folder))
    python = str(environment_python(folder))
    log.info("installing %s", ", ".join(_PACKAGES))
    with ExitStack() as stack:
        pins = stack.enter_context(as_file(files("edgeadapt.converters.onnx") / CONSTRAINTS))
        _run(python, "-m", "pip", "install", "-c", str(pins), *_PACKAGES)
    versions = json.loads(_run(python, "-c", _PROOF).splitlines()[-1])
    write_json(Path(folder) / READY, versions)  # last: without it the environment does not count
    return OptimumSetup("installed", str(folder), versions)


def _run(*command: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    log.debug("%s%s", done.stdout, done.stderr)
    if done.returncode != 0:
        lines = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()
        raise RuntimeFailure(
            f"setting up optimum failed at `{' '.join(command[1:4])}`: {lines[-1][:300]}"
        )
    return done.stdout
