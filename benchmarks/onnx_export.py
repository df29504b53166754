"""ONNX export: onnxruntime-genai's builder and our own writer, side by side.

    python benchmarks/onnx_export.py                       # the built-in model, three times
    python benchmarks/onnx_export.py --scale 1b            # a random model of that size
    python benchmarks/onnx_export.py --scale 1b --exporters stream

Each export is a process of its own, cold. Memory is anonymous memory (RssAnon), summed over the
process and its children and sampled every 20 ms. The floor is what the same libraries take when
they are imported and nothing else; the ratio is what is above it, over the size of the weights in
bfloat16.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from gguf_export import SCALES, Cost, folder_bytes, make_model, measure

from edgeadapt.base_model import resolve_base
from edgeadapt.safetensors_io import SafetensorsSource
from edgeadapt.weights import parameter_count

FLOORS = {
    "stream": "import edgeadapt.cli.export_, edgeadapt.export; "
    "import edgeadapt.converters.onnx.stream.decoder, tokenizers",
    "builder": "import torch, transformers, onnx, onnx_ir, onnxruntime; "
    "from onnxruntime_genai.models import builder",
}
"""What each path imports. The builder runs in a child of the command, whose own imports are few."""

TITLES = {"": 10, "seconds": 9, "CPU s": 8, "anon. MB": 10, "floor MB": 10, "ratio": 8,
          "output MB": 11}  # fmt: skip
"""Of the table's columns, and how wide they are."""


def export(base: Path, exporter: str, work: Path, args: argparse.Namespace) -> tuple[Cost, int]:
    """One export; what it took, and the size of what it left."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    out = work / "out"
    command = [
        sys.executable, "-m", "edgeadapt", "export", "--base", base, "--format", "onnx",
        "--quant", args.quant, "--exporter", exporter, "--threads", str(args.threads),
        "--out", out, "-q",
    ]  # fmt: skip
    cost = measure([command], {"EDGEADAPT_CACHE": str(work / "cache")})
    return cost, folder_bytes(out)


def floor(exporter: str) -> int:
    """Anonymous memory of the imports, in bytes."""
    code = f"{FLOORS[exporter]}; import time; time.sleep(0.2)"
    return measure([[sys.executable, "-c", code]], {}).anonymous


def main() -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="default")
    parser.add_argument("--scale", choices=SCALES, help="a random model of this size instead")
    parser.add_argument("--quant", default="int4")
    parser.add_argument("--exporters", nargs="+", default=["builder", "stream"], choices=FLOORS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--work", type=Path, help="folder for scratch files; needs room")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        work = Path(folder)
        base = resolve_base(args.base)
        if args.scale:
            base = make_model(work / "model", resolve_base("default"), SCALES[args.scale])
        weights = 2 * parameter_count(SafetensorsSource(base))
        print(f"{args.quant}, {args.threads} threads, weights {weights / 1e6:,.0f} MB in bfloat16")
        print("".join(f"{title:>{width}}" for title, width in TITLES.items()))
        for exporter in args.exporters:
            low = floor(exporter)
            runs = [export(base, exporter, work / "run", args) for _ in range(args.repetitions)]
            seconds = statistics.median(cost.seconds for cost, _ in runs)
            cpu = statistics.median(cost.cpu_seconds for cost, _ in runs)
            anonymous = max(cost.anonymous for cost, _ in runs)
            print(
                f"{exporter:<10}{seconds:9.1f}{cpu:8.1f}{anonymous / 1e6:10.0f}{low / 1e6:10.0f}"
                f"{(anonymous - low) / weights:8.2f}{runs[-1][1] / 1e6:11.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
