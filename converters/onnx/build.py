"""Run onnxruntime-genai's builder in a process of its own, and watch it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from edgeadapt.console import log, progress
from edgeadapt.converters.onnx.options import Options
from edgeadapt.errors import RuntimeFailure

_READ = re.compile(r"^Reading layer (\d+)")
_QUANTIZED = re.compile(r"^Progress: \[.*\] ([\d.]+)%")


def build(
    source: Path, out: Path, *, precision: str, options: Options, layers: int, threads: int
) -> None:
    """Make `model.onnx` and its companions in `out` from a float32 model folder.

    What the builder prints goes to the log at debug level.

    Args:
        source: a Hugging Face folder; scratch files go beside it.
        out: an existing folder.
        precision: `fp32`, `int8` or `int4`.
        options: the builder's extra options.
        layers: decoder layers of the model, for the progress bar.
        threads: threads that the quantizer may use.

    Raises:
        RuntimeFailure: the builder failed or was killed.
    """
    scratch = source.parent
    report = scratch / "report.json"
    job = {
        "source": str(source.resolve()),
        "out": str(out.resolve()),
        "cache": str(scratch.resolve() / "cache"),
        "precision": precision,
        "options": options,
        "report": str(report.resolve()),
    }
    command = [sys.executable, "-u", "-m", "edgeadapt.converters.onnx.build_child", json.dumps(job)]
    child = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,  # its closing tells the child that this process is gone
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=_environment(threads),
    )
    try:
        _follow(child, layers, read_share=1.0 if precision == "fp32" else 0.5)
        code = child.wait()
    finally:
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe:
                pipe.close()
    outcome = json.loads(report.read_text()) if report.is_file() else {}
    if code != 0:
        raise RuntimeFailure(_why(code, outcome.get("error")))
    log.debug("the ONNX builder took %.0f MB at its peak", outcome["peak_bytes"] / 1e6)


def _environment(threads: int) -> dict[str, str]:
    """No network, no telemetry, no terminal tricks; the caller's virtual environment stays."""
    return os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_MININTERVAL": "10",
        "OMP_NUM_THREADS": str(threads),
    }


def _follow(child: subprocess.Popen[str], layers: int, read_share: float) -> None:
    """Log the child's output until it ends, and tell a person how far it is.

    Args:
        child: the running builder.
        layers: how many layers it will say that it reads.
        read_share: part of the work that reading is; the rest is quantizing.
    """
    assert child.stdout is not None
    done = 0.0
    with progress("building the ONNX graph", 100, "%") as advance:
        for line in child.stdout:
            log.debug("builder: %s", line.rstrip())
            reached = 0.0
            if match := _READ.match(line):
                reached = read_share * (int(match[1]) + 1) / layers
            elif match := _QUANTIZED.search(line):
                reached = read_share + (1 - read_share) * float(match[1]) / 100
            if done < reached <= 1:
                advance(100 * (reached - done))
                done = reached
        advance(100 * (1 - done))


def _why(code: int, error: str | None) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        return f"the ONNX builder was killed by {name}; most often this means too little memory"
    return f"the ONNX builder failed: {error or f'exit code {code}'} (--debug shows its output)"
