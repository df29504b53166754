"""Decode speed and memory of ONNX graphs beside GGUF files of like size, in one run.

    python benchmarks/runtimes.py MODEL.gguf ONNX-FOLDER ... [--repetitions 5] [--runtime all]
    python benchmarks/runtimes.py --adapter ADAPTER      # exports Q4_K_M, Q8_0, int4 and int8 first

Each round measures every artifact on every runtime that loads it, each in a process of its own,
as `edgeadapt bench` does; the order turns from round to round, so that none always runs after
the same other one and a busy moment hits all of them. Medians over the rounds. `own` is the
process's own memory at its peak (KV cache, work buffers, repacked weights), `file` what it had
mapped from files. Ratios are to the first line.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path

from edgeadapt.artifact import open_artifact
from edgeadapt.bench.measurement import Measurement
from edgeadapt.bench.run import bench_artifact
from edgeadapt.console import log, set_verbosity
from edgeadapt.export import export, open_model
from edgeadapt.runtimes.registry import installed_runtimes

EXPORTS = (("gguf", "Q4_K_M"), ("gguf", "Q8_0"), ("onnx", "int4"), ("onnx", "int8"))


def export_all(base: str, adapter: Path | None, work: Path) -> list[Path]:
    """The usual small and larger artifact of both formats."""
    model = open_model(base, adapter)
    paths = []
    for format, quantization in EXPORTS:
        log.warning("exporting %s %s", format, quantization)
        out = work / (f"{quantization}.gguf" if format == "gguf" else f"onnx-{quantization}")
        paths.append(export(model, format, quantization, out).path)
    return paths


def measure(
    paths: list[Path], runtimes: list[str], options: argparse.Namespace
) -> dict[tuple[Path, str], list[Measurement]]:
    """All rounds."""
    pairs = [
        (path, name)
        for path in paths
        for name in installed_runtimes(open_artifact(path).format)
        if not runtimes or name in runtimes
    ]
    found: dict[tuple[Path, str], list[Measurement]] = defaultdict(list)
    for number in range(options.repetitions):
        start = number % len(pairs)
        for pair in pairs[start:] + pairs[:start]:
            path, name = pair
            found[pair].append(
                bench_artifact(
                    path,
                    runtime=name,
                    threads=options.threads,
                    prompt_tokens=options.prompt_tokens,
                    decode_tokens=options.decode_tokens,
                    repetitions=1,
                )
            )
        log.warning("round %d of %d done", number + 1, options.repetitions)
    return {pair: found[pair] for pair in pairs}


def row(path: Path, name: str, rounds: list[Measurement], first: float | None) -> tuple[str, float]:
    """One line of the table, and its decode speed."""
    decode = [m.decode_tps.median for m in rounds]
    speed = statistics.median(decode)
    prefill = statistics.median(m.prefill_tps.median for m in rounds)
    own = statistics.median((m.memory.peak_anonymous or 0) / 2**20 for m in rounds)
    file = statistics.median((m.memory.peak_file_backed or 0) / 2**20 for m in rounds)
    load = statistics.median(m.load_s for m in rounds)
    label = f"{rounds[0].artifact.format} {rounds[0].artifact.quantization}"
    text = (
        f"{label:<18}{name:<13}{rounds[0].artifact.size_bytes / 1e6:>8.1f}{speed:>9.1f}"
        f"{min(decode):>8.1f}{max(decode):>8.1f}{speed / (first or speed):>7.2f}{prefill:>9.1f}"
        f"{own:>8.0f}{file:>8.0f}{load:>8.2f}"
    )
    return text, first or speed


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifacts", nargs="*", type=Path)
    parser.add_argument("--base", default="default")
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--runtime", nargs="*", default=[], help="default: all installed")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--decode-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    set_verbosity(-1)
    with tempfile.TemporaryDirectory() as work:
        paths = options.artifacts or export_all(options.base, options.adapter, Path(work))
        measured = measure(paths, options.runtime, options)
        machine = next(iter(measured.values()))[0]
        print(
            f"{machine.runtime.threads_in_use} threads, {options.repetitions} rounds, "
            f"{options.prompt_tokens} prompt and {options.decode_tokens} decoded tokens"
        )
        print(
            f"{'':<31}{'MB':>8}{'tok/s':>9}{'lowest':>8}{'highest':>8}{'ratio':>7}{'prefill':>9}"
            f"{'own MiB':>8}{'file':>8}{'load s':>8}"
        )
        first = None
        for (path, name), rounds in measured.items():
            text, first = row(path, name, rounds, first)
            print(text)


if __name__ == "__main__":
    main()
