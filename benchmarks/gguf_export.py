"""Export to GGUF: the chain that people run today, and ours, side by side.

    python benchmarks/gguf_export.py                       # the chain against ours, five times
    python benchmarks/gguf_export.py --scale 7b            # ours alone, on a random big model

The chain is PEFT's merge_and_unload and save_pretrained, llama.cpp's convert_hf_to_gguf.py and
llama.cpp's quantizer, each in a process of its own, as on a command line. Both sides start cold
(imports included, nothing in edgeadapt's cache) and take turns. Memory is anonymous memory
(RssAnon), summed over a process and its children and sampled every 20 ms; scratch is what was
written besides the result, with what goes to the cache. The chain checks nothing; `- parity` is
ours without its check of template and tokens against the original (in child processes).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil

from edgeadapt.base_model import resolve_base
from edgeadapt.safetensors_io import SafetensorsSource, write_safetensors
from edgeadapt.tokenizer import TOKENIZER_FILES
from edgeadapt.weights import Float32Array, TensorInfo

MERGE = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base, adapter, out = sys.argv[1:]
torch.set_num_threads({threads})
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
model.merge_and_unload().save_pretrained(out)
AutoTokenizer.from_pretrained(base).save_pretrained(out)
"""

QUANTIZE = """
import ctypes, sys, llama_cpp
params = llama_cpp.llama_model_quantize_default_params()
params.ftype, params.nthread = {ftype}, {threads}
source, out = (text.encode() for text in sys.argv[1:])
sys.exit(llama_cpp.llama_model_quantize(source, out, ctypes.byref(params)))
"""

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

SCALES: dict[str, dict[str, int]] = {
    # The shapes of Llama-3.2-1B and Mistral-7B, with the built-in model's vocabulary.
    "1b": {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8, "intermediate_size": 8192},
    "7b": {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "intermediate_size": 14336},
}  # fmt: skip

SHARD_BYTES = 4 << 30


@dataclass(frozen=True)
class Cost:
    """What one run took."""

    seconds: float
    anonymous: int
    """Peak over the process tree, in bytes."""
    scratch: int
    """Bytes written besides the result."""
    cpu_seconds: float
    file_backed: int = 0
    """Peak over the process tree, in bytes."""


def measure(steps: Sequence[Sequence[str | Path]], environment: dict[str, str]) -> Cost:
    """Run commands one after the other; the first failure ends the benchmark."""
    peak, mapped, start = 0, 0, time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for step in steps:
        process = subprocess.Popen(
            [str(word) for word in step],
            env=os.environ | environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        tail = _Tail(process)
        while process.poll() is None:
            own, file_backed = _resident(process.pid)
            peak, mapped = max(peak, own), max(mapped, file_backed)
            time.sleep(0.02)
        if process.returncode:
            sys.exit(f"{step[0]} {step[1]} failed:\n{tail.text()}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(time.perf_counter() - start, peak, 0, cpu, mapped)


class _Tail:
    """Reads a process's stderr, so that it never waits for us."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr is not None
        self._stream, self._data = process.stderr, b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while chunk := self._stream.read1(1 << 16):  # type: ignore[attr-defined]
            self._data = (self._data + chunk)[-3000:]

    def text(self) -> str:
        self._thread.join(5)
        return self._data.decode(errors="replace")


def _resident(pid: int) -> tuple[int, int]:
    """RssAnon and RssFile of a process and all that it started."""
    total = {"RssAnon": 0, "RssFile": 0}
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return 0, 0
    for process in processes:
        try:
            text = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            continue
        for line in text.splitlines():
            name, _, rest = line.partition(":")
            if name in total:
                total[name] += int(rest.split()[0]) * 1024
    return total["RssAnon"], total["RssFile"]


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def chain(base: Path, adapter: Path, converter: Path, work: Path, args: argparse.Namespace) -> Cost:
    """PEFT, convert_hf_to_gguf.py, llama_model_quantize."""
    from edgeadapt.converters.gguf.mixes import MIXES

    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    merged, half, out = work / "merged", work / "f16.gguf", work / "out.gguf"
    ftype = int(MIXES[args.quant][0])
    python = sys.executable
    cost = measure(
        [
            [python, "-c", MERGE.format(threads=args.threads), base, adapter, merged],
            [python, converter, merged, "--outfile", half, "--outtype", "f16"],
            [python, "-c", QUANTIZE.format(ftype=ftype, threads=args.threads), half, out],
        ],
        {"OMP_NUM_THREADS": str(args.threads)},
    )
    scratch = folder_bytes(work) - out.stat().st_size
    return Cost(cost.seconds, cost.anonymous, scratch, cost.cpu_seconds)


def ours(
    base: Path,
    adapter: Path | None,
    work: Path,
    args: argparse.Namespace,
    *,
    parity: bool = True,
) -> Cost:
    """`edgeadapt export`, with an empty cache."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    out = work / "out.gguf"
    command = [
        sys.executable, "-m", "edgeadapt", "export", "--base", base, "--format", "gguf",
        "--quant", args.quant, "--threads", str(args.threads), "--out", out, "-q",
    ]  # fmt: skip
    if not parity:
        command += ["--no-parity"]
    if adapter is not None:
        command += ["--adapter", adapter]
    cost = measure([command], {"EDGEADAPT_CACHE": str(work / "cache")})
    scratch = folder_bytes(work) - out.stat().st_size
    return Cost(cost.seconds, cost.anonymous, scratch, cost.cpu_seconds)


def find_converter(given: Path | None, work: Path) -> Path:
    """llama.cpp's converter: as given, or from the sdist of the installed llama-cpp-python."""
    if given is not None:
        path = given / "convert_hf_to_gguf.py"
        if not path.is_file():
            sys.exit(f"{given} holds no convert_hf_to_gguf.py; give llama.cpp's source folder")
        return path
    name = f"llama-cpp-python=={version('llama-cpp-python').split('+')[0]}"
    print(f"fetching the source of {name} ...", file=sys.stderr)
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation",
         "--no-binary", ":all:", "--dest", work, name],
        check=True,
    )  # fmt: skip
    with tarfile.open(next(work.glob("llama_cpp_python-*.tar.gz"))) as archive:
        archive.extractall(work / "source", filter="data")
    return next((work / "source").glob("*/vendor/llama.cpp/convert_hf_to_gguf.py"))


def make_adapter(base: Path, out: Path, rank: int = 16) -> Path:
    """A random LoRA on every linear layer, as PEFT saves it."""
    random = np.random.default_rng(0)
    tensors: dict[str, TensorInfo] = {}
    for name, info in SafetensorsSource(base).tensors().items():
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] in PROJECTIONS:
            for part, shape in (("A", (rank, info.shape[1])), ("B", (info.shape[0], rank))):
                key = f"base_model.model.{module}.lora_{part}.weight"
                tensors[key] = TensorInfo(key, shape, "F32")

    def rows(name: str, start: int, stop: int) -> Float32Array:
        shape = (stop - start, *tensors[name].shape[1:])
        return (random.standard_normal(shape) * 0.02).astype(np.float32)

    out.mkdir(parents=True)
    write_safetensors(out / "adapter_model.safetensors", tensors, rows)
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank,
        "target_modules": list(PROJECTIONS), "base_model_name_or_path": str(base),
    }  # fmt: skip
    (out / "adapter_config.json").write_text(json.dumps(config))
    return out


def make_model(out: Path, like: Path, shape: dict[str, int]) -> Path:
    """A Llama of the given shape in sharded bf16, filled with random numbers."""
    config = json.loads((like / "config.json").read_text()) | shape
    config |= {
        "head_dim": shape["hidden_size"] // shape["num_attention_heads"],
        "dtype": "bfloat16",
    }
    out.mkdir(parents=True)
    (out / "config.json").write_text(json.dumps(config))
    for name in TOKENIZER_FILES:
        if (like / name).is_file():
            shutil.copyfile(like / name, out / name)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, dimensions in llama_tensors(config).items():
        size += 2 * int(np.prod(dimensions))
        if size > SHARD_BYTES:
            shards.append({})
            size = 2 * int(np.prod(dimensions))
        shards[-1][name] = dimensions
    placed = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        fill(out / file, shard)
        placed |= dict.fromkeys(shard, file)
    (out / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    return out


def llama_tensors(config: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Llama with a tied head."""
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    small = config["num_key_value_heads"] * config["head_dim"]
    tensors: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden)
    }
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}.{norm}.weight"] = (hidden,)
        for name, rows in (("q", hidden), ("k", small), ("v", small), ("o", hidden)):
            tensors[f"{prefix}.self_attn.{name}_proj.weight"] = (rows, hidden)
        for name in ("gate", "up"):
            tensors[f"{prefix}.mlp.{name}_proj.weight"] = (wide, hidden)
        tensors[f"{prefix}.mlp.down_proj.weight"] = (hidden, wide)
    return tensors | {"model.norm.weight": (hidden,)}


def fill(path: Path, tensors: dict[str, tuple[int, ...]]) -> None:
    """A safetensors file of bf16 numbers near zero; blocks repeat, from a new place each time."""
    header, end = {}, 0
    for name, shape in tensors.items():
        start, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = np.random.default_rng(len(tensors))
    values = random.standard_normal(1 << 24, dtype=np.float32) * np.float32(0.02)
    block = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        left = end
        while left:
            start = 2 * int(random.integers(1 << 23))
            left -= file.write(block[start : start + left])


def row(label: str, costs: list[Cost]) -> str:
    """Medians as one line of the table."""

    def median(value: Callable[[Cost], float]) -> float:
        return statistics.median(map(value, costs))

    return (
        f"{label:<8}{median(lambda c: c.seconds):9.2f}{median(lambda c: c.anonymous) / 2**20:11.0f}"
        f"{median(lambda c: c.scratch) / 2**20:13.1f}"
        f"{100 * median(lambda c: c.cpu_seconds / c.seconds):9.0f}"
    )


HEAD = f"{'':<8}{'seconds':>9}{'anon. MiB':>11}{'scratch MiB':>13}{'CPU %':>9}"


def compare(args: argparse.Namespace, work: Path) -> None:
    """The chain against ours."""
    base = resolve_base(args.base)
    adapter = args.adapter or make_adapter(base, work / "adapter")
    converter = find_converter(args.llama_cpp_source, work)
    theirs: list[Cost] = []
    mine: list[Cost] = []
    unchecked: list[Cost] = []
    for number in range(args.repetitions):
        theirs.append(chain(base, adapter, converter, work / "chain", args))
        mine.append(ours(base, adapter, work / "ours", args))
        unchecked.append(ours(base, adapter, work / "unchecked", args, parity=False))
        print(
            f"{number + 1}/{args.repetitions}: chain {theirs[-1].seconds:.2f} s, "
            f"ours {mine[-1].seconds:.2f} s",
            file=sys.stderr,
        )
    print(f"{args.quant}, {args.threads} threads, medians of {args.repetitions}\n{HEAD}")
    print(row("chain", theirs))
    print(row("ours", mine))
    print(row("- parity", unchecked))
    whole, bare = (seconds(costs) / seconds(theirs) for costs in (mine, unchecked))
    print(f"ours takes {whole:.3f}x of the chain's time, {bare:.3f}x without parity")


def seconds(costs: list[Cost]) -> float:
    """Median of the wall time."""
    return statistics.median(cost.seconds for cost in costs)


def scale(args: argparse.Namespace, work: Path) -> None:
    """Ours alone on a big model."""
    print(f"filling a random {args.scale} model ...", file=sys.stderr)
    model = make_model(work / "model", resolve_base("default"), SCALES[args.scale])
    adapter = make_adapter(model, work / "adapter")
    costs = [ours(model, adapter, work / "ours", args) for _ in range(args.repetitions)]
    print(f"{args.scale}, {args.quant}, {args.threads} threads, medians of {args.repetitions}")
    print(f"{HEAD}\n{row(args.scale, costs)}")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="default")
    parser.add_argument("--adapter", type=Path, help="default: random, rank 16, all linear layers")
    parser.add_argument("--quant", default="Q4_K_M")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument(
        "--scale", choices=SCALES, help="ours alone, on a random model of this size"
    )
    parser.add_argument(
        "--llama-cpp-source", type=Path, help="folder with convert_hf_to_gguf.py; else downloaded"
    )
    parser.add_argument("--work", type=Path, help="folder for scratch files; needs room")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.work) as work:
        (scale if args.scale else compare)(args, Path(work))


if __name__ == "__main__":
    main()
