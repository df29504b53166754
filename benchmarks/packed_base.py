"""A LoRA trained on a GGUF base that stays packed, beside the same base dequantized once.

    python benchmarks/packed_base.py [--rounds 1] [--steps 4] [--work FOLDER]

The base is a random Llama of the shape of Llama-3.2-1B in Q4_0. Both ways train it from the
command line on the same data, with the imported base in the cache, and take turns. Memory is the
peak of what is resident, sampled every 20 ms: anonymous (RssAnon), and file-backed (RssFile), in
which both kinds of weights lie, mapped. Seconds are those of a step: of a run, less those of a run
of one step. Start it in a control group with little memory to see what reading the larger file
again and again costs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from gguf_export import SCALES, Cost, make_model, measure

from edgeadapt.base_model import resolve_base

WAYS = ("dequantized", "packed")


def train(base: Path, weights: str, steps: int, work: Path, args: argparse.Namespace) -> Cost:
    """One run of `edgeadapt train`, and its cost."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        return measure(
            [[
                sys.executable, "-m", "edgeadapt", "train", "--base", base, "--data", "python-docs",
                "--method", "lora", "--max-steps", str(steps), "--batch-size", str(args.batch_size),
                "--set", f"base_weights={weights}", "--held-out-examples", "1",
                "--set", "save_every_s=3600", "--out", Path(folder) / "out", "-q",
            ]],
            {"EDGEADAPT_CACHE": str(work / "cache")},
        )  # fmt: skip


def prepare(work: Path) -> Path:
    """The random model as Q4_0, imported into the cache."""
    base = work / "random-1b.Q4_0.gguf"
    if not base.exists():
        folder = make_model(work / "random-1b", resolve_base("default"), SCALES["1b"])
        export = ["export", "--base", folder, "--format", "gguf", "--quant", "Q4_0", "--no-parity"]
        measure([[sys.executable, "-m", "edgeadapt", *export, "--out", base, "-q"]], {})
    return base


def main() -> None:
    """Take turns, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--work", type=Path, help="keep the models here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = args.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        base = prepare(work)
        train(base, "packed", 1, work, args)  # imports the base
        costs: dict[str, list[tuple[int, int, float]]] = {way: [] for way in WAYS}
        for _ in range(args.rounds):
            for way in WAYS:
                one, all_steps = (train(base, way, n, work, args) for n in (1, 1 + args.steps))
                step = (all_steps.seconds - one.seconds) / args.steps
                costs[way].append((all_steps.anonymous, all_steps.file_backed, step))
    print(f"{'base':<12} {'anonymous MiB':>14} {'file-backed MiB':>16} {'s a step':>9}")
    for way, found in costs.items():
        own, mapped, seconds = (statistics.median(column) for column in zip(*found, strict=True))
        print(f"{way:<12} {own / 2**20:>14,.0f} {mapped / 2**20:>16,.0f} {seconds:>9.1f}")


if __name__ == "__main__":
    main()
