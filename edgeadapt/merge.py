"""A merged model as a plain Hugging Face folder, written one tensor at a time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from edgeadapt.adapters.sequential import check_without
from edgeadapt.artifact import Artifact
from edgeadapt.console import progress
from edgeadapt.export import ModelToExport
from edgeadapt.files import atomic_folder, write_json
from edgeadapt.safetensors_io import INDEX, SINGLE, write_safetensors
from edgeadapt.tokenizer import TOKENIZER_FILES
from edgeadapt.weights import Float32Array, TensorInfo, WeightSource

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
MAX_SHARD_BYTES = 5 * 10**9
_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8}


def merge_to_folder(model: ModelToExport, out: Path, *, dtype: str = "float32") -> Artifact:
    """Write a plain Hugging Face folder of the merged model, one tensor at a time.

    Args:
        model: what to write.
        out: a folder that does not exist yet.
        dtype: of the merged tensors; `float32` keeps what was merged, the others round it.

    Raises:
        UnsupportedError: the adapter is part of no weight.
        ChangedError: the model was changed meanwhile.
    """
    check_without(model.source.config, "in a folder of plain weights there is")
    stored = DTYPES[dtype]
    infos = {name: replace(info, dtype=stored) for name, info in model.source.tensors().items()}
    with atomic_folder(out) as partial:
        config = {k: v for k, v in model.source.config.items() if k != "torch_dtype"}
        write_json(partial / "config.json", config | {"dtype": dtype})
        for name in TOKENIZER_FILES:
            if (model.folder / name).is_file():
                shutil.copyfile(model.folder / name, partial / name)
        _write_shards(partial, infos, model.source)
        artifact = Artifact(out, "hf", dtype, model.lineage)
        artifact.write_manifest(partial)
        model.inputs.check()
    return artifact


def _write_shards(folder: Path, infos: dict[str, TensorInfo], source: WeightSource) -> None:
    shards = list(_shards(infos))
    total = sum(info.size * _BYTES[info.dtype] for info in infos.values())
    with progress(f"writing {folder.name.strip('.').split('.')[0]}", total) as advance:

        def read(name: str, start: int, stop: int) -> Float32Array:
            values = source.rows(name, start, stop)
            advance(values.size * _BYTES[infos[name].dtype])
            return values

        for number, shard in enumerate(shards, 1):
            name = SINGLE if len(shards) == 1 else _shard_name(number, len(shards))
            write_safetensors(folder / name, shard, read, {"format": "pt"})
    if len(shards) > 1:
        weight_map = {
            tensor: _shard_name(number, len(shards))
            for number, shard in enumerate(shards, 1)
            for tensor in shard
        }
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(folder / INDEX, index)


def _shards(infos: dict[str, TensorInfo]) -> Iterator[dict[str, TensorInfo]]:
    """Consecutive tensors in groups of at most `MAX_SHARD_BYTES` (or one tensor)."""
    shard: dict[str, TensorInfo] = {}
    size = 0
    for name, info in infos.items():
        nbytes = info.size * _BYTES[info.dtype]
        if shard and size + nbytes > MAX_SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = info
        size += nbytes
    yield shard


def _shard_name(number: int, count: int) -> str:
    return f"model-{number:05d}-of-{count:05d}.safetensors"
