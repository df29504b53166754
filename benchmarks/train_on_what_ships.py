"""Train on the quantized weights that ship, beside merging and quantizing afterwards.

    python benchmarks/train_on_what_ships.py [--steps 60] [--work FOLDER]

Two tables on the built-in 135M model and python-docs, every figure from `edgeadapt evaluate` on
llama.cpp:

- At Q4_0: mean KL divergence from the model as torch trained it, of QLoRA merged and quantized, and
  of a LoRA trained on the quantized weights and shipped beside them.
- At Q2_K: held-out perplexity of the merged model, of its Q2_K file, and of that file with a LoRA
  beside it that was trained to follow the merged model.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

DATA = "python-docs"


def edgeadapt(*arguments: object) -> Any:
    """Run a command, and return its JSON."""
    command = [sys.executable, "-m", "edgeadapt", *map(str, arguments), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, 1):  # 1: a gate failed, and the figures are there
        raise SystemExit(done.returncode)
    return json.loads(done.stdout)


def once(out: Path, *arguments: object) -> Path:
    """Make a file or folder, unless it is there from an earlier call."""
    if not out.exists():
        edgeadapt(*arguments, "--out", out)
    return out


def figures(artifact: Path, base: object, adapter: Path, *more: object) -> dict[str, Any]:
    """What `evaluate` says of an artifact."""
    found = edgeadapt(
        "evaluate", artifact, "--base", base, "--adapter", adapter, "--data", DATA,
        "--examples", 64, "--no-quantized-base", *more,
    )  # fmt: skip
    record: dict[str, Any] = found["artifacts"][0]["fidelity"]["llama-cpp"]["fidelity"]
    return record


def train(base: object, out: Path, steps: int, *more: object) -> Path:
    """Train a LoRA."""
    return once(
        out, "train", "--base", base, "--data", DATA, "--max-steps", steps, "--set", "alpha=32",
        *more,
    )  # fmt: skip


def at_q4_0(work: Path, steps: int) -> None:
    """First table."""
    lora = ("--set", "learning_rate=2e-3")
    merged_way = train("default", work / "qlora", steps, "--method", "qlora", *lora)
    requantized = once(
        work / "merged.Q4_0.gguf", "export", "--base", "default", "--adapter", merged_way,
        "--format", "gguf", "--quant", "Q4_0",
    )  # fmt: skip
    shipped = once(
        work / "base.Q4_0.gguf", "export", "--base", "default", "--format", "gguf", "--quant",
        "Q4_0",
    )  # fmt: skip
    on_it = train(shipped, work / "on-q4_0", steps, "--method", "lora", *lora)
    beside = once(
        work / "on-q4_0.gguf", "export", "--base", shipped, "--adapter", on_it, "--adapter-mode",
        "separate", "--format", "gguf", "--quant", "F16",
    )  # fmt: skip
    first = figures(requantized, "default", merged_way)
    second = figures(shipped, shipped, on_it, "--beside", beside)
    ratio = second["mean_kl"]["value"] / first["mean_kl"]["value"]
    print("| At Q4_0 | mean KL from the trained model | perplexity |")
    print("| --- | ---: | ---: |")
    for name, found in (("QLoRA, merged, quantized", first), ("LoRA on what ships", second)):
        print(f"| {name} | {found['mean_kl']['value']:.5f} | {found['perplexity']['value']:.2f} |")
    print(f"\nThe second is 1/{1 / ratio:.0f} of the first.\n")


def at_q2_k(work: Path, steps: int) -> None:
    """Second table; needs the first one's QLoRA."""
    adapter = work / "qlora"
    two_bits = once(
        work / "merged.Q2_K.gguf", "export", "--base", "default", "--adapter", adapter,
        "--format", "gguf", "--quant", "Q2_K",
    )  # fmt: skip
    recovery = train(
        two_bits, work / "recovery", steps, "--method", "lora", "--set", "learning_rate=1e-3",
        "--teacher", "default", "--teacher-adapter", adapter,
    )  # fmt: skip
    beside = once(
        work / "recovery.gguf", "export", "--base", two_bits, "--adapter", recovery,
        "--adapter-mode", "separate", "--format", "gguf", "--quant", "F16",
    )  # fmt: skip
    alone = figures(two_bits, "default", adapter)
    helped = figures(two_bits, two_bits, recovery, "--beside", beside)
    goal = alone["reference_perplexity"]["value"]
    taken, left = alone["perplexity"]["value"] - goal, helped["perplexity"]["value"] - goal
    print("| At Q2_K | perplexity |")
    print("| --- | ---: |")
    print(f"| merged model, float32 | {goal:.2f} |")
    print(f"| its Q2_K file | {alone['perplexity']['value']:.2f} |")
    print(f"| with the recovery LoRA beside it | {helped['perplexity']['value']:.2f} |")
    print(f"\n{100 * (1 - left / taken):.0f}% of what Q2_K took is given back.")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60, help="of each training")
    parser.add_argument("--work", type=Path, help="kept, and gone on with")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = given.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        at_q4_0(work, given.steps)
        at_q2_k(work, given.steps)


if __name__ == "__main__":
    main()
