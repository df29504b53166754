"""The small run that several files look at: on the real model, killed in the middle and resumed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

RECIPE = """
name: small
base: default
data: {train: python-docs}
train: {method: qlora, r: 8, max_steps: 6, max_tokens: 128, held_out_examples: 8, save_every_s: 0}
export:
  - {format: gguf, quantization: Q4_K_M}
evaluate: {held_out_examples: 8, max_tokens: 128, answer_tokens: 8}
bench: {prompt_tokens: 32, decode_tokens: 8, repetitions: 2, reference: false}
gates: {max_kl: 0.5, min_top1: 0.3, min_retention: null, max_perplexity_ratio: 2.0}  # few tokens
"""


def edgeadapt(*arguments: object, folder: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgeadapt", *map(str, arguments)],
        cwd=folder, capture_output=True, text=True, **options,
    )  # fmt: skip


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed while training, and continued."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "small.yaml").write_text(RECIPE)
    with subprocess.Popen(
        [sys.executable, "-m", "edgeadapt", "run", "small.yaml"],
        cwd=folder, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline and not list(folder.rglob("checkpoint-*/complete*")):
            assert process.poll() is None, "it ended before a checkpoint was written"
            time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
    assert not list((folder / "runs/small").glob("train-*")), "training had ended already"
    resumed = edgeadapt("run", "small.yaml", "--resume", folder=folder, timeout=1200)
    assert resumed.returncode == 0, resumed.stderr
    assert "going on from step" in resumed.stderr
    return folder
