"""What does each way of quantizing an ONNX graph lose, and at what size?

    python benchmarks/onnx_int4.py --adapter ADAPTER [--base default] [--data python-docs]
        [--tokens 4096] [--only int4:rtn_mixed int4:hqq ...]

Every graph is exported from the same merged model and run in plain onnxruntime over the same
held-out text, chat template included. For each position the next token's distribution is compared
with that of the float32 model in torch: mean (with its standard error over positions) and 95th
percentile of the Kullback-Leibler divergence KL(float32 || graph) in nats, and how often both find
the same token most probable.
`speed` is prefill of that text: a hint, not a benchmark (see benchmarks/runtimes.py).
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeadapt.artifact import Artifact, open_artifact
from edgeadapt.console import set_verbosity
from edgeadapt.converters.onnx.options import ALGORITHMS, OnnxOptions
from edgeadapt.data.encode import encode_dataset
from edgeadapt.data.source import resolve_data
from edgeadapt.export import ModelToExport, export, open_model
from edgeadapt.jobs import available_threads
from edgeadapt.merge import merge_to_folder
from edgeadapt.runtimes import SessionSettings, get_runtime
from edgeadapt.tokenizer import ModelTokenizer

STREAM, BUILDER = "stream", "builder"


def _blocks(algorithm: str, **options: Any) -> OnnxOptions:
    exporter = BUILDER if algorithm.startswith("hqq") else STREAM
    return OnnxOptions(exporter=exporter, algorithm=algorithm, **options)


# Each names its exporter, so that a figure does not change with what is the default.
VARIANTS: dict[str, tuple[str, OnnxOptions]] = {
    **{f"int4:{name}": ("int4", _blocks(name)) for name in ALGORITHMS},
    **{
        f"int4:{name},block {size}": ("int4", _blocks(name, block_size=size))
        for name in ("rtn_mixed", "k_quant_mixed")
        for size in (16, 64, 128)
    },
    "int4:rtn,symmetric": ("int4", _blocks("rtn", symmetric=True)),
    "int4:rtn_mixed,symmetric": ("int4", _blocks("rtn_mixed", symmetric=True)),
    "int4:rtn_mixed,accuracy 1": ("int4", _blocks("rtn_mixed", accuracy_level=1)),
    "int4:k_quant_mixed,accuracy 1": ("int4", _blocks("k_quant_mixed", accuracy_level=1)),
    "int8:rtn": ("int8", _blocks("rtn")),
    "int8:k_quant": ("int8", _blocks("k_quant")),
    "int8-dynamic:avx2": ("int8-dynamic", OnnxOptions(exporter=BUILDER, preset="avx2")),
    "int8-dynamic:arm64": ("int8-dynamic", OnnxOptions(exporter=BUILDER, preset="arm64")),
    "fp16": ("fp16", OnnxOptions(exporter=STREAM)),
}

Logits = npt.NDArray[np.float32]


def held_out(data: str, tokenizer: ModelTokenizer, tokens: int) -> list[list[int]]:
    """The demo's 64 sequences of the held-out part, or as many as give enough tokens."""
    train, brought = resolve_data(data)
    chosen: list[list[int]] = []
    for encoded in encode_dataset(brought or train, tokenizer, 512, limit=64):
        if sum(map(len, chosen)) >= tokens:
            break
        chosen.append(list(encoded.ids))
    return chosen


def log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    """Rows of log probabilities."""
    rows = logits.astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    result: npt.NDArray[np.float64] = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return result


def divergences(reference: Logits, found: Logits) -> npt.NDArray[np.float64]:
    """KL(reference || found) of each row, in nats."""
    parts = []
    for start in range(0, len(reference), 64):
        p, q = (log_softmax(x[start : start + 64]) for x in (reference, found))
        parts.append((np.exp(p) * (p - q)).sum(axis=1))
    return np.concatenate(parts)


def run(artifact: Artifact, runtime: str, texts: Sequence[list[int]], out: Path | None) -> Logits:
    """Logits at every position of all texts; on disk where `out` says."""
    settings = SessionSettings(threads=available_threads(), context=1024)
    session = get_runtime(runtime).load(artifact, settings)
    shape = (sum(map(len, texts)), session.vocab_size)
    rows = (
        np.empty(shape, np.float32)
        if out is None
        else np.lib.format.open_memmap(str(out), mode="w+", dtype=np.float32, shape=shape)
    )
    start = 0
    for ids in texts:
        rows[start : start + len(ids)] = session.all_logits(ids)
        start += len(ids)
    session.close()
    return rows


def measure(
    name: str, model: ModelToExport, reference: Logits, texts: Sequence[list[int]], work: Path
) -> str:
    """Export one variant, run it, remove it; one line of the table."""
    quantization, options = VARIANTS[name]
    folder = work / "graph"
    shutil.rmtree(folder, ignore_errors=True)
    start = time.perf_counter()
    artifact = export(model, "onnx", quantization, folder, onnx=options)
    exported = time.perf_counter()
    found = run(artifact, "onnxruntime", texts, work / "found.npy")
    speed = len(found) / (time.perf_counter() - exported)
    kl = divergences(reference, found)
    same = float((reference.argmax(axis=1) == found.argmax(axis=1)).mean())
    size = sum(path.stat().st_size for path in folder.glob("model.onnx*"))
    return (
        f"{name:<30}{options.exporter:>8}{size / 1e6:>8.1f}{kl.mean():>10.4f}"
        f"{kl.std() / len(kl) ** 0.5:>8.4f}{np.percentile(kl, 95):>10.4f}"
        f"{100 * same:>8.1f}{exported - start:>9.0f}{speed:>9.0f}"
    )


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="default")
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--data", default="python-docs")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options = parser.parse_args()
    set_verbosity(-1)
    model = open_model(options.base, options.adapter)
    texts = held_out(options.data, ModelTokenizer.from_folder(model.folder), options.tokens)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        merged = merge_to_folder(model, work / "merged")
        reference = run(open_artifact(merged.path), "torch", texts, work / "reference.npy")
        print(f"{model.name}: {len(texts)} held-out texts, {len(reference)} positions")
        print(
            f"{'':<30}{'exporter':>8}{'MB':>8}{'mean KL':>10}{'+-':>8}{'p95 KL':>10}{'same %':>8}"
            f"{'export s':>9}{'tok/s':>9}",
            flush=True,
        )
        for variant in options.only:
            print(measure(variant, model, reference, texts, work), flush=True)


if __name__ == "__main__":
    main()
