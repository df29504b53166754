"""What it costs to keep an adapter apart from an ONNX graph: idle and active, against merged.

    python benchmarks/onnx_adapters.py                       # the built-in model, int4
    python benchmarks/onnx_adapters.py --adapter runs/demo/train-.../adapter --runtime ort-genai

The cases take turns, each run in a process of its own. The tax is how much longer a token takes
than with the merged graph, from the median decode speeds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from gguf_export import make_adapter

from edgeadapt.base_model import resolve_base
from edgeadapt.bench.measurement import Measurement
from edgeadapt.bench.run import bench_artifact
from edgeadapt.export import export, open_model
from edgeadapt.export_separate import export_with_adapters
from edgeadapt.lora_slots import FOLDER, SUFFIX

HEAD = f"{'':<8}{'decode tok/s':>14}{'ms/token':>10}{'tax':>8}{'prefill tok/s':>15}{'peak MB':>9}"


def cases(args: argparse.Namespace, work: Path) -> dict[str, tuple[Path, Path | None]]:
    """Artifact and active adapter of each case."""
    base = resolve_base(args.base)
    adapter = args.adapter or make_adapter(base, work / "adapter", args.rank)
    plain = export(open_model(str(base)), "onnx", args.quant, work / "base")
    merged = export(open_model(str(base), adapter), "onnx", args.quant, work / "merged")
    apart = export_with_adapters(str(base), [adapter], args.quant, work / "apart")
    file = apart.path / FOLDER / f"{adapter.resolve().name}{SUFFIX}"
    return {
        "merged": (merged.path, None),
        "base": (plain.path, None),
        "idle": (apart.path, None),
        "active": (apart.path, file),
    }


def main() -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="default")
    parser.add_argument("--adapter", type=Path, help="default: random, on all linear layers")
    parser.add_argument("--rank", type=int, default=16, help="of the random adapter")
    parser.add_argument("--quant", default="int4")
    parser.add_argument("--runtime", default="onnxruntime", help="or ort-genai")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = cases(args, Path(folder))
        runs: dict[str, list[Measurement]] = {name: [] for name in found}
        for number in range(args.rounds):
            print(f"round {number + 1} of {args.rounds}", file=sys.stderr)
            for name, (path, adapter) in found.items():
                measured = bench_artifact(
                    path, runtime=args.runtime, threads=args.threads, adapter=adapter
                )
                runs[name].append(measured)
    speeds = {n: statistics.median(m.decode_tps.median for m in ms) for n, ms in runs.items()}
    print(f"{args.quant} on {args.runtime}, medians of {args.rounds}")
    print(HEAD)
    for name, measurements in runs.items():
        prefill = statistics.median(m.prefill_tps.median for m in measurements)
        peak = max(m.memory.peak_rss or 0 for m in measurements)
        print(
            f"{name:<8}{speeds[name]:14.1f}{1e3 / speeds[name]:10.2f}"
            f"{speeds['merged'] / speeds[name] - 1:8.1%}{prefill:15.0f}{peak / 1e6:9.0f}"
        )


if __name__ == "__main__":
    main()
