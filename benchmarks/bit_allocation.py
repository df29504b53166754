"""Bits where they matter: `export --max-size` against llama.cpp's stock mixes, at their own sizes.

    python benchmarks/bit_allocation.py --adapter runs/demo/train-*/adapter

For each stock mix it writes three files from the base merged with the adapter: the mix as it is,
the mix with an importance matrix, and the types that edgeadapt chooses for a file that is no larger
than the smaller of the two. Each runs on llama.cpp, and its mean KL divergence from the merged
model in torch, float32, is taken over held-out text that calibration never saw. Both importance
matrices come from the same text, `--calibrate`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeadapt.allocation.allocate import allocate
from edgeadapt.artifact import Artifact
from edgeadapt.calibration import cached_imatrix
from edgeadapt.calibration.activations import load_model
from edgeadapt.calibration.text import token_chunks
from edgeadapt.converters.gguf.options import GgufOptions
from edgeadapt.data.source import resolve_data
from edgeadapt.export import ModelToExport, export, open_model
from edgeadapt.extras import need
from edgeadapt.fidelity.metrics import Estimate, diverge_rows, log_softmax, mean
from edgeadapt.runtimes.base import SessionSettings
from edgeadapt.runtimes.registry import get_runtime
from edgeadapt.tokenizer import ModelTokenizer

MIXES = ("Q4_K_M", "Q4_0", "Q2_K")


@dataclass(frozen=True)
class HeldOut:
    """Text, and what the merged model says of it."""

    chunks: list[list[int]]
    log_probs: list[np.ndarray]
    """Float16, shape (tokens - 1, vocabulary)."""


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="default")
    parser.add_argument("--adapter", action="append", default=[], required=True)
    parser.add_argument("--calibrate", default="python-docs", help="its training part")
    parser.add_argument("--held-out", help="default: what comes with --calibrate")
    parser.add_argument("--mixes", nargs="+", default=MIXES)
    parser.add_argument("--chunks", type=int, default=16, help="of held-out text")
    parser.add_argument("--chunk-tokens", type=int, default=256)
    parser.add_argument("--imatrix-chunks", type=int, default=16, help="of 512 tokens")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    data, held_out = resolve_data(options.calibrate)
    held_out = Path(options.held_out) if options.held_out else held_out
    if held_out is None:
        parser.error("give --held-out: text other than that of --calibrate")
    model = open_model(options.base, options.adapter)
    text = reference(model, held_out, options.chunks, options.chunk_tokens)
    print(f"{sum(len(c) - 1 for c in text.chunks)} tokens of {held_out.name}, llama.cpp against")
    print("the merged model in torch, float32; mean KL divergence in nats, +- standard error\n")
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for mix in options.mixes:
            rows += compare(model, mix, data, text, Path(scratch), options)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


def compare(
    model: ModelToExport,
    mix: str,
    data: Path,
    text: HeldOut,
    scratch: Path,
    options: argparse.Namespace,
) -> list[dict[str, object]]:
    """One mix's three files, measured and printed."""
    imatrix = cached_imatrix(model, data, chunks=options.imatrix_chunks)
    stock = export(model, "gguf", mix, scratch / f"{mix}.gguf", threads=options.threads)
    weighed = export(
        model, "gguf", mix, scratch / f"{mix}-imatrix.gguf",
        threads=options.threads, options=GgufOptions(imatrix),
    )  # fmt: skip
    limit = min(stock.size_bytes, weighed.size_bytes)
    start = time.perf_counter()
    chosen = allocate(model, data, f"{limit}B", threads=options.threads)
    seconds = time.perf_counter() - start
    ours = export(
        model, "gguf", chosen.mix, scratch / f"{mix}-ours.gguf",
        threads=options.threads, options=chosen.options(),
    )  # fmt: skip
    rows: list[dict[str, object]] = []
    first = None
    for label, artifact in (
        (mix, stock),
        (f"{mix}, imatrix", weighed),
        (f"--max-size {limit / 2**20:.2f}MiB", ours),
    ):
        kl = divergence(artifact, text, options.threads)
        first = first or kl.value
        print(
            f"{label:<26} {artifact.size_bytes / 2**20:8.2f} MiB   "
            f"{kl.value:.4f} +- {kl.standard_error:.4f}   {100 * (kl.value / first - 1):+6.1f}%",
            flush=True,
        )
        rows.append(
            {"mix": mix, "file": label, "bytes": artifact.size_bytes, "mean_kl": kl.record()}
        )
        artifact.path.unlink()
    rows[-1] |= {"allocation": chosen.document(), "seconds": seconds}
    print(f"{'':26} chosen in {seconds:.0f} s (what was measured before is reused)\n", flush=True)
    return rows


def reference(model: ModelToExport, data: Path, count: int, length: int) -> HeldOut:
    """Held-out text with the merged model's log probabilities, from torch in float32."""
    torch = need("torch", "computing the reference")
    chunks = token_chunks(data, ModelTokenizer.from_folder(model.folder), count, length)
    loaded, log_probs = load_model(model.source), []
    for chunk in chunks:
        with torch.inference_mode():
            logits = loaded(input_ids=torch.tensor([chunk]), use_cache=False).logits[0, :-1]
        log_probs.append(log_softmax(logits.numpy()).astype(np.float16))
    return HeldOut(chunks, log_probs)


def divergence(artifact: Artifact, text: HeldOut, threads: int | None) -> Estimate:
    """KL(merged || artifact) over the held-out text, on llama.cpp as it runs by default."""
    settings = SessionSettings(threads=threads or 2, context=max(map(len, text.chunks)))
    values, sequences = [], []
    with contextlib.closing(get_runtime("llama-cpp").load(artifact, settings)) as session:
        for number, (chunk, expected) in enumerate(zip(text.chunks, text.log_probs, strict=True)):
            logits = session.all_logits(chunk)[:-1]
            found = diverge_rows(expected, logits, np.array(chunk[1:]))
            values.append(found.kl)
            sequences.append(np.full(len(found.kl), number))
    return mean(np.concatenate(values), np.concatenate(sequences))


if __name__ == "__main__":
    main()
