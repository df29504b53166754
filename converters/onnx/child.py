"""Run exporters and quantizers in processes of their own, and watch them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeadapt.console import log, progress
from edgeadapt.errors import RuntimeFailure

Step = dict[str, Any]
"""`step`, a key of `STEPS` in `edgeadapt.converters.onnx.steps`, and that function's arguments."""

_READ = re.compile(r"^Reading layer (\d+)")
_QUANTIZED = re.compile(r"^(?:Progress: \[.*\]|quantized) ([\d.]+)%")


def run_steps(
    steps: Sequence[Step], scratch: Path, *, layers: int, threads: int, read_share: float
) -> None:
    """Do steps one after another in a child process.

    What they print goes to the log at debug level.

    Args:
        steps: what to do.
        scratch: an existing folder.
        layers: decoder layers of the model, for the progress bar.
        threads: threads that the steps may use.
        read_share: part of the work that reading layers is; the rest is quantizing.

    Raises:
        RuntimeFailure: a step failed, or the child was killed.
    """
    command = [sys.executable, "-u", "-m", "edgeadapt.converters.onnx.steps"]
    run_child(
        command,
        {"steps": list(steps)},
        scratch,
        what="the ONNX builder",
        layers=layers,
        threads=threads,
        read_share=read_share,
    )


def run_child(
    command: Sequence[str],
    job: dict[str, Any],
    scratch: Path,
    *,
    what: str,
    layers: int,
    threads: int,
    read_share: float,
) -> dict[str, Any]:
    """Run a program with a job as its last argument; its report tells how it ended.

    Args:
        command: the program.
        job: to be passed as JSON; `report` is added, a file that it writes `error` or
            `peak_bytes` to.
        scratch: an existing folder for the report.
        what: the program's name in messages.
        layers, threads, read_share: as `run_steps`.

    Returns:
        The report.

    Raises:
        RuntimeFailure: it failed or was killed.
    """
    report = scratch / "report.json"
    report.unlink(missing_ok=True)
    child = subprocess.Popen(
        [*command, json.dumps(job | {"report": str(report.resolve())})],
        stdin=subprocess.PIPE,  # its closing tells the child that this process is gone
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=_environment(threads),
    )
    try:
        _follow(child, what, layers, read_share)
        code = child.wait()
    finally:
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe:
                pipe.close()
    outcome: dict[str, Any] = json.loads(report.read_text()) if report.is_file() else {}
    if code != 0:
        raise RuntimeFailure(_why(what, code, outcome.get("error")))
    log.debug("%s took %.0f MB at its peak", what, outcome["peak_bytes"] / 1e6)
    return outcome


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


def _follow(child: subprocess.Popen[str], what: str, layers: int, read_share: float) -> None:
    """Log the child's output until it ends, and tell a person how far it is."""
    assert child.stdout is not None
    done = 0.0
    with progress("building the ONNX graph", 100, "%") as advance:
        for line in child.stdout:
            log.debug("%s: %s", what, line.rstrip())
            reached = 0.0
            if match := _READ.match(line):
                reached = read_share * (int(match[1]) + 1) / layers
            elif match := _QUANTIZED.search(line):
                reached = read_share + (1 - read_share) * float(match[1]) / 100
            if done < reached <= 1:
                advance(100 * (reached - done))
                done = reached
        advance(100 * (1 - done))


def _why(what: str, code: int, error: str | None) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        return f"{what} was killed by {name}; most often this means too little memory"
    return f"{what} failed: {error or f'exit code {code}'} (--debug shows its output)"
