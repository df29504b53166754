"""What is fuzzed: each reader of files that others made, with whole files to begin from.

A target gets bytes and reads them as one kind of file. It may raise an `EdgeAdaptError`; anything
else is a fault, and so is what `watched` forbids.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from edgeadapt.adapters.spec import describe_spec, read_spec
from edgeadapt.bench.llama_bench import read_llama_bench
from edgeadapt.bundle.archive import write_archive
from edgeadapt.bundle.container import open_container
from edgeadapt.bundle.integrity import check_files, read_manifest
from edgeadapt.bundle.manifest import (
    DIGEST,
    MANIFEST,
    FileEntry,
    Gate,
    Manifest,
    Origin,
    Variant,
    digest_bytes,
    manifest_bytes,
    parse_manifest,
)
from edgeadapt.chat_template import Message
from edgeadapt.converters.gguf.imatrix import Entry, Imatrix, read_imatrix, write_imatrix
from edgeadapt.data.examples import Example
from edgeadapt.devices import read_entry
from edgeadapt.errors import EdgeAdaptError
from edgeadapt.gguf_io import GgufFile
from edgeadapt.prefix import Prefix, read_prefix, write_prefix
from edgeadapt.prompting.few_shot import FewShot, few_shot_of, read_few_shot
from edgeadapt.recipe import load_recipe
from edgeadapt.registry.artifact import Layer, artifact_bytes, parse_artifact
from edgeadapt.safetensors_io import SafetensorsFile
from edgeadapt.warm.prompt import Beside, MadeFor, WarmPrompt, read_warm, warm_text
from edgeadapt.warm.state import Key, read_state, write_state

SEEDS = Path(__file__).with_name("seeds")
"""Kept files, a folder for each target: those that once did harm."""
_MOST_ROWS = 4


@dataclass(frozen=True)
class Target:
    """One reader."""

    name: str
    read: Callable[[Path], object]
    """Reads the files in a folder, to which the case's bytes were written."""
    file: str
    """Name of the file that the bytes become."""
    seeds: Callable[[Path], list[bytes]]
    """Whole files to begin from; may write in the folder that it is given."""


def run_case(target: Target, data: bytes, folder: Path) -> None:
    """Read `data` in a folder of its own; raises whatever is a fault."""
    path = folder / target.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    with watched(), contextlib.suppress(EdgeAdaptError):
        target.read(folder)


_watching = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching:
        return
    if event in ("pickle.find_class", "socket.connect", "subprocess.Popen", "os.system"):
        raise AssertionError(f"a reader caused {event} {arguments}")
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        raise AssertionError(f"a reader opened {arguments[0]} for writing")


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Meanwhile nothing may be written, unpickled, started or connected to."""
    global _watching
    if not getattr(sys, "_edgeadapt_fuzz_hook", False):
        sys.addaudithook(_hook)  # cannot be taken away again
        sys._edgeadapt_fuzz_hook = True  # type: ignore[attr-defined]
    _watching = True
    try:
        yield
    finally:
        _watching = False


def mutate(data: bytes, choose: random.Random) -> bytes:
    """A few bytes changed, inserted, removed, repeated or set to a telling number."""
    changed = bytearray(data)
    for _ in range(choose.randint(1, 6)):
        place = choose.randrange(len(changed) + 1)
        what = choose.randrange(5)
        if what == 0 and changed:
            changed[place % len(changed)] = choose.randrange(256)
        elif what == 1:
            changed[place:place] = choose.randbytes(choose.randint(1, 8))
        elif what == 2:
            del changed[place : place + choose.randint(1, 40)]
        elif what == 3:
            number = choose.choice(
                (0, 1, 0x7F, 0x80, 0xFFFF, 1 << 31, (1 << 63) - 1, (1 << 64) - 1)
            )
            changed[place : place + 8] = number.to_bytes(8, "little")
        else:
            piece = changed[place : place + choose.randint(1, 40)]
            changed[place:place] = piece * choose.randint(1, 4)
    return bytes(changed)


def all_seeds(target: Target) -> list[bytes]:
    """What a target begins from, kept files included."""
    with tempfile.TemporaryDirectory() as scratch:
        made = target.seeds(Path(scratch))
    kept = SEEDS / target.name
    files = sorted(kept.iterdir()) if kept.is_dir() else []
    return [*made, *(path.read_bytes() for path in files)]


def _read_gguf(folder: Path) -> None:
    file = GgufFile(folder / "x.gguf")
    for name, tensor in list(file.tensors.items())[:_MOST_ROWS]:
        file.rows(name, 0, min(_MOST_ROWS, tensor.shape[0]))


def _gguf_seeds(folder: Path) -> list[bytes]:
    import gguf

    found = []
    for kind in ("Q8_0", "Q4_0", "F16", "F32"):
        path = folder / f"{kind}.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_name("seed")
        writer.add_array("tokenizer.ggml.tokens", ["<s>", "a", "b"])
        writer.add_array("tokenizer.ggml.scores", [0.0, -1.0, -2.0])
        writer.add_bool("a.flag", True)
        values = np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32)
        stored = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
        writer.add_tensor("blk.0.w", stored, raw_dtype=gguf.GGMLQuantizationType[kind])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        found.append(path.read_bytes())
    return found


def _read_safetensors(folder: Path) -> None:
    file = SafetensorsFile(folder / "x.safetensors")
    for name, info in list(file.tensors().items())[:_MOST_ROWS]:
        file.rows(name, 0, min(_MOST_ROWS, info.shape[0] if info.shape else 1))


def _safetensors_seeds(folder: Path) -> list[bytes]:
    from safetensors.numpy import save

    arrays = {
        "a": np.zeros((2, 3), np.float32), "b": np.ones(4, np.float16),
        "c": np.zeros((1, 2, 2), np.float32),
    }  # fmt: skip
    return [save(arrays), save({}), save(arrays, {"format": "pt"})]


def _read_prefix(folder: Path) -> None:
    read_prefix(folder / "x.safetensors")


def _prefix_seeds(folder: Path) -> list[bytes]:
    random = np.random.default_rng(0)
    keys, values = random.normal(size=(2, 2, 1, 3, 4)).astype(np.float32)
    found = []
    for number, base in enumerate((None, "ab" * 32)):
        path = folder / f"{number}.safetensors"
        write_prefix(Prefix(keys, values, base), path)
        found.append(path.read_bytes())
    return found


_WARM_KEY = Key(artifact="a" * 64, adapter="b" * 64, ids="c" * 64, settings={"lib": "1"})


def _warm_seeds(folder: Path) -> list[bytes]:
    made = MadeFor(
        name="m.gguf", format="gguf", quantization="Q4_0", sha256="a" * 64, base=None, adapters=()
    )
    messages = ({"role": "system", "content": "Be brief."},)
    prompt = WarmPrompt(
        edgeadapt="0.1.0", artifact=made, adapter=Beside(name="a.gguf", sha256="b" * 64),
        messages=messages, text="<s>Be brief.", ids=(1, 2, 3),
    )  # fmt: skip
    return [warm_text(prompt).encode()]


def _warm_state_seeds(folder: Path) -> list[bytes]:
    write_state(folder / "seed", _WARM_KEY, b"state" * 20)
    return [(folder / "seed").read_bytes()]


def _read_warm_state(folder: Path) -> None:
    read_state(folder / "x.warm.state", _WARM_KEY)


def _read_adapter(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    if not weights.exists():
        raise AssertionError("the folder lacks its weights")
    with contextlib.suppress(EdgeAdaptError):
        describe_spec(folder)
    read_spec(folder)


def _adapter_seeds(folder: Path) -> list[bytes]:
    plain = {
        "peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {"layers.0.q_proj": 8}, "alpha_pattern": {"q_proj": 4},
        "modules_to_save": None, "use_rslora": False, "use_dora": False, "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "base", "trainable_token_indices": {"embed_tokens": [1, 2]},
        "layers_to_transform": [0, 1], "fan_in_fan_out": False, "bias": "none",
    }  # fmt: skip
    others = ({"peft_type": "IA3"}, {"peft_type": "LOHA"}, {"target_modules": "all-linear"})
    return [json.dumps(plain | change).encode() for change in ({}, *others)]


_RECIPE = b"""name: a-run
base: default
data: {train: python-docs, held_out: null}
train: {method: qlora, r: 8, epochs: 1}
gates: {max_kl: 0.1}
evaluate: {task: {metric: rouge-l, examples: 4}}
export:
  - device: raspberry-pi-5
  - {format: gguf, quantization: Q8_0}
  - {format: gguf, max_size: 85MiB}
"""


def _imatrix_seeds(folder: Path) -> list[bytes]:
    entries = {
        f"blk.{i}.w.weight": Entry(np.full((1, 4), 2.0, np.float32), np.ones(1, np.float32))
        for i in range(2)
    }
    path = folder / "seed.gguf"
    write_imatrix(Imatrix(entries, ("data",), 2, 64), path)
    return [path.read_bytes()]


def _llama_bench_seeds(folder: Path) -> list[bytes]:
    from tests.bench.test_llama_bench import COMMON, DECODE, DEEP, PREFILL

    return [json.dumps([COMMON | test for test in (PREFILL, DECODE, DEEP)], indent=2).encode()]


def _read_manifest(folder: Path) -> None:
    """As `verify` does, without the digest, which would refuse every change at once."""
    manifest = parse_manifest((folder / "bundle/manifest.json").read_bytes())
    check_files(open_container(folder / "bundle"), manifest)


def _read_archive(folder: Path) -> None:
    container = open_container(folder / "bundle.zip")
    manifest, _ = read_manifest(container)
    check_files(container, manifest)


def _artifact_seeds(_: Path) -> list[bytes]:
    layers = [Layer("README.md", 9, "0" * 64), Layer("models/m.gguf", 7, "f" * 64)]
    return [artifact_bytes("seed", layers)]


def _bundle_seeds(folder: Path) -> tuple[bytes, bytes]:
    """A small bundle's manifest, and the bundle as an archive."""
    content = {"models/m.gguf": b"weights", "LICENSE": b"as you like"}
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
    variant = Variant(
        name="m", format="gguf", quantization="Q8_0", path="models/m.gguf", bytes=7,
        sha256=digests["models/m.gguf"], devices={"raspberry-pi-5": "it fits"}, passed=True,
        gates={"llama-cpp": (Gate(gate="max_kl", figure=0.1, limit=0.2, passed=True),)},
    )  # fmt: skip
    manifest = Manifest(
        name="seed", base=Origin(name="base", sha256="0" * 64), variants=(variant,),
        tools={"edgeadapt": "0.1.0"},
        files={n: FileEntry(size=len(data), sha256=digests[n]) for n, data in content.items()},
    )  # fmt: skip
    place = folder / "bundle"
    for name, data in content.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    data = manifest_bytes(manifest)
    (place / MANIFEST).write_bytes(data)
    (place / DIGEST).write_bytes(digest_bytes(data))
    write_archive(place, folder / "bundle.zip")
    return data, (folder / "bundle.zip").read_bytes()


def _few_shot_seeds(_: Path) -> list[bytes]:
    shots = [Example(prompt=f"What is {i}?", completion="A number.") for i in range(2)]
    system: Message = {"role": "system", "content": "Be brief."}
    return [json.dumps(FewShot(few_shot_of(shots).shots, system).prompt(), indent=2).encode()]


def _profile_seeds(folder: Path) -> list[bytes]:
    profiles = files("edgeadapt.device_profiles")
    names = ("raspberry-pi-5", "jetson-orin-nano", "laptop-x86")
    return [(profiles / f"{name}.yaml").read_bytes() for name in names]


TARGETS = {
    target.name: target
    for target in (
        Target("gguf", _read_gguf, "x.gguf", _gguf_seeds),
        Target("safetensors", _read_safetensors, "x.safetensors", _safetensors_seeds),
        Target("prefix", _read_prefix, "x.safetensors", _prefix_seeds),
        Target(
            "warm", lambda f: read_warm(f / "x.warm.json"), "x.warm.json", _warm_seeds,
        ),
        Target("warm-state", _read_warm_state, "x.warm.state", _warm_state_seeds),
        Target("adapter", _read_adapter, "adapter_config.json", _adapter_seeds),
        Target("recipe", lambda f: load_recipe(str(f / "r.yaml")), "r.yaml", lambda _: [_RECIPE]),
        Target("profile", lambda f: read_entry(f / "p.yaml"), "p.yaml", _profile_seeds),
        Target("imatrix", lambda f: read_imatrix(f / "i.gguf"), "i.gguf", _imatrix_seeds),
        Target(
            "llama-bench", lambda f: read_llama_bench(f / "b.json"), "b.json", _llama_bench_seeds
        ),
        Target("few-shot", lambda f: read_few_shot(f / "f.json"), "f.json", _few_shot_seeds),
        Target(
            "manifest", _read_manifest, "bundle/manifest.json",
            lambda f: [_bundle_seeds(f)[0]],
        ),
        Target(
            "zip", _read_archive, "bundle.zip",
            lambda f: [_bundle_seeds(f)[1]],
        ),
        Target(
            "artifact", lambda f: parse_artifact((f / "a.json").read_bytes()), "a.json",
            _artifact_seeds,
        ),
    )
}  # fmt: skip


@contextlib.contextmanager
def case_folder(target: Target) -> Iterator[Path]:
    """A folder in memory, if there is such, with what a target needs beside its file."""
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="edgeadapt-fuzz-", dir=shared))
    try:
        if target.name == "adapter":
            weights = _safetensors_seeds(folder)[0]
            (folder / "adapter_model.safetensors").write_bytes(weights)
        yield folder
    finally:
        shutil.rmtree(folder)
