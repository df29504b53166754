"""The whole pipeline on the real model: killed in the middle, resumed, and what it made used."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgeadapt.training.quantization import detect_nf4_settings
from tests.e2e.conftest import edgeadapt

pytestmark = pytest.mark.e2e


def test_the_killed_run_ends_with_all_its_steps(run: Path) -> None:
    document = json.loads((run / "runs/small/run.json").read_text())
    assert document["adapter"]["steps"] == 6
    assert len(document["adapter"]["losses"]) == 6
    names = [p.name for p in (run / "runs/small").iterdir() if p.name.endswith(".partial")]
    assert names == []


def test_the_merge_base_was_measured(run: Path) -> None:
    document = json.loads((run / "runs/small/run.json").read_text())
    merge = document["merge"]
    figures = merge["measured"]
    perplexity = {name: figures[name]["perplexity"]["value"] for name in ("original", "quantized")}
    assert merge["onto"] == min(perplexity, key=lambda name: perplexity[name])
    # It is the live model, but for the type that this computes in on a CPU with AVX512-BF16.
    exact = detect_nf4_settings().compute_dtype == "float32"
    assert figures["quantized"]["mean_kl"]["value"] < (1e-5 if exact else 2e-3)
    live = document["adapter"]["held_out"]["after"]["perplexity"]
    assert abs(figures["live"]["perplexity"]["value"] / live - 1) < 1e-3
    lineage = document["artifacts"][0]["lineage"]["merge"]
    assert lineage["measured"] == figures


def test_running_again_does_nothing(run: Path) -> None:
    again = edgeadapt("run", "small.yaml", "--json", folder=run, timeout=300)
    assert again.returncode == 0, again.stderr
    assert all(stage["reused"] for stage in json.loads(again.stdout)["stages"])


def test_the_adapter_is_a_plain_peft_folder(run: Path) -> None:
    from peft import PeftConfig

    document = json.loads((run / "runs/small/run.json").read_text())
    config = PeftConfig.from_pretrained(document["adapter"]["path"])
    assert config.r == 8 and config.base_model_name_or_path == "default"


def test_export_merge_and_chat_with_what_was_trained(run: Path, tmp_path: Path) -> None:
    document = json.loads((run / "runs/small/run.json").read_text())
    adapter = document["adapter"]["path"]
    merge = document["merge"]
    exported = edgeadapt(
        "export", "--base", "default", "--adapter", adapter, "--format", "gguf", "--merge-onto",
        merge["onto"], "--quant", "Q4_K_M", "--out", tmp_path / "m.gguf", "--json", "--parity",
        folder=tmp_path, timeout=300,
    )  # fmt: skip
    assert exported.returncode == 0, exported.stderr
    parity = json.loads(exported.stdout)["parity"]
    assert parity["passed"] and parity["cases"] > 500
    artifact = Path(document["artifacts"][0]["path"])
    assert tensor_bytes(tmp_path / "m.gguf") == tensor_bytes(artifact)
    merged = edgeadapt(
        "merge", "--base", "default", "--adapter", adapter, "--out", tmp_path / "merged",
        folder=tmp_path, timeout=300,
    )  # fmt: skip
    assert merged.returncode == 0, merged.stderr
    chat = edgeadapt(
        "chat", artifact, "--prompt", "What is two plus two?", "--max-tokens", "16",
        folder=tmp_path, timeout=300,
    )  # fmt: skip
    assert chat.returncode == 0 and chat.stdout.strip(), chat.stderr


def tensor_bytes(path: Path) -> dict[str, bytes]:
    from gguf import GGUFReader

    return {tensor.name: tensor.data.tobytes() for tensor in GGUFReader(path).tensors}


def test_the_export_imports_nothing_heavy(run: Path, tmp_path: Path) -> None:
    """The common methods are merged and converted without torch, transformers or peft."""
    adapter = json.loads((run / "runs/small/run.json").read_text())["adapter"]["path"]
    code = (
        "import sys\n"
        "from edgeadapt.cli import cli\n"
        f"cli(['export', '--base', 'default', '--adapter', {adapter!r}, '--format', 'gguf',"
        " '--quant', 'Q8_0', '--out', 'm.gguf', '-q'], standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'peft', 'llama_cpp', 'onnxruntime'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"
