"""Do `edgeadapt evaluate` and llama.cpp's perplexity tool state the same divergence?

    python benchmarks/kl_against_llama_cpp.py MODEL.gguf --tool llama-perplexity --text held.txt \
        --base default --adapter ADAPTER [--window 512] [--windows 8]

Both get the same tokens in the same windows and the same reference: our float32 torch logits,
written in the tool's own format (--kl-divergence-base). Both run the model themselves. The mean
divergences are to agree within 2%; otherwise it ends with exit code 1.
"""

from __future__ import annotations

import argparse
import re
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

import numpy as np

from edgeadapt.adapters import parse_adapters
from edgeadapt.artifact import open_artifact
from edgeadapt.base_model import resolve_base
from edgeadapt.fidelity.compare import Engine, compare
from edgeadapt.fidelity.evaluate import Yardstick
from edgeadapt.fidelity.metrics import Fidelity, summarize
from edgeadapt.jobs import available_threads
from edgeadapt.pipeline.evaluation import Settings, Subject, yardstick_of

LIMIT = 0.02
LARGEST = 16.0
"""The tool keeps log probabilities down to the row's largest minus this."""

LINES = {
    "Mean KLD": r"Mean\s+KLD:\s+(\S+)",
    "Median KLD": r"Median\s+KLD:\s+(\S+)",
    "99% KLD": r"99\.0%\s+KLD:\s+(\S+)",
    "Max KLD": r"Maximum KLD:\s+(\S+)",
    "PPL": r"Mean PPL\(Q\)\s+:\s+(\S+)",
    "PPL ratio": r"Mean PPL\(Q\)/PPL\(base\)\s+:\s+(\S+)",
    "Top-1 %": r"Same top p:\s+(\S+)",
    "RMS change %": r"RMS Δp\s+:\s+(\S+)",
}


def write_base(file: IO[bytes], yardstick: Yardstick, window: int) -> None:
    """The reference in the format that the tool reads: see its `log_softmax` and `kl_divergence`.

    Each row is a scale, the lowest log probability, and 16-bit steps of that scale above it.
    """
    log_probs = yardstick.reference.log_probs
    width = log_probs.shape[1]
    file.write(b"_logits_" + struct.pack("<Iii", window, width, len(yardstick.encoded)))
    tokens = [token for example in yardstick.encoded for token in example.ids]
    file.write(np.asarray(tokens, "<i4").tobytes())
    for row in log_probs:
        values = row.astype(np.float32)
        lowest = max(values.min(), values.max() - LARGEST)
        scale = (values.max() - lowest) / 65535
        steps = np.rint((np.maximum(values, lowest) - lowest) / scale).astype("<u2")
        padding = b"\0\0" * (width % 2)
        file.write(struct.pack("<ff", scale, lowest) + steps.tobytes() + padding)


def of_tool(tool: Path, model: Path, base: Path, window: int, threads: int) -> dict[str, float]:
    """Run the tool, and read the figures that it prints."""
    done = subprocess.run(
        [
            tool, "-m", model, "--kl-divergence-base", base, "--kl-divergence", "-c", str(window),
            "-b", str(window), "-t", str(threads), "-ngl", "0",
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    text = done.stdout + done.stderr
    found = {name: re.search(pattern, text) for name, pattern in LINES.items()}
    if done.returncode or not all(found.values()):
        sys.exit(f"{tool} failed:\n{text[-2000:]}")
    return {name: float(match[1].rstrip("%")) for name, match in found.items() if match}


def of_ours(figures: Fidelity) -> dict[str, float]:
    """The same figures of ours."""
    return {
        "Mean KLD": figures.mean_kl.value,
        "Median KLD": figures.median_kl.value,
        "99% KLD": figures.p99_kl.value,
        "Max KLD": figures.max_kl,
        "PPL": figures.perplexity.value,
        "PPL ratio": figures.perplexity_ratio.value,
        "Top-1 %": 100 * figures.top1.value,
        "RMS change %": 100 * figures.rms_probability_change.value,
    }


def main() -> None:
    """Parse, run both, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--tool", type=Path, required=True, help="llama.cpp's llama-perplexity")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--base", default="default")
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--threads", type=int, default=available_threads())
    options = parser.parse_args()

    subject = Subject(
        resolve_base(options.base),
        parse_adapters([options.adapter] if options.adapter else []),
        data=options.text,
        examples=options.windows,
    )
    settings = Settings(threads=options.threads, window=options.window)
    yardstick = yardstick_of(subject, settings)
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base.kld"
        with base.open("wb") as file:
            write_base(file, yardstick, options.window)
        for model in options.models:
            theirs = of_tool(options.tool, model, base, options.window, options.threads)
            divergence = compare(
                model, yardstick.encoded, yardstick.reference,
                engine=Engine(threads=options.threads), title=model.name,
            )  # fmt: skip
            ours = of_ours(summarize(yardstick.reference.scores, divergence, yardstick.sequences))
            quantization = open_artifact(model).quantization
            print(f"\n{model.name} ({quantization}), {len(divergence.kl)} tokens")
            print(f"{'figure':<14}{'llama.cpp':>12}{'edgeadapt':>12}{'difference':>12}")
            for name, value in theirs.items():
                difference = ours[name] / value - 1
                if name == "Mean KLD":
                    worst = max(worst, abs(difference))
                print(f"{name:<14}{value:>12.6f}{ours[name]:>12.6f}{difference:>12.2%}")
    print(f"\nlargest difference of a mean KLD {worst:.2%} (held to: within {LIMIT:.0%})")
    sys.exit(worst > LIMIT)


if __name__ == "__main__":
    main()
