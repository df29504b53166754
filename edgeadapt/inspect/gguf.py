"""Describe a GGUF file: a model, an adapter or an importance matrix."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

from edgeadapt.converters.gguf.metadata import describe
from edgeadapt.gguf_io import GgufFile, GgufTensor
from edgeadapt.gguf_split import open_gguf, split_files


def describe_gguf(path: Path) -> dict[str, Any]:
    """Everything that the file says about itself, and bytes by type of tensor.

    Raises:
        InputError: a file of a split model is missing.
        CorruptFileError: the file is damaged.
    """
    files = split_files(path)
    file, artifact = open_gguf(path), describe(files[0])
    metadata, tensors = file.metadata, file.tensors.values()
    arch = metadata.get("general.architecture")
    described = {
        "kind": "gguf",
        "path": str(path),
        "holds": metadata.get("general.type", "model"),
        "architecture": arch,
        "name": metadata.get("general.name"),
        "quantization": artifact.quantization,
        "parameters": sum(prod(tensor.shape) for tensor in tensors),
        "bytes": sum(part.stat().st_size for part in files),
        "files": [part.name for part in files],
        "types": _by_type(file),
        "layers": metadata.get(f"{arch}.block_count"),
        "hidden_size": metadata.get(f"{arch}.embedding_length"),
        "heads": metadata.get(f"{arch}.attention.head_count"),
        "kv_heads": metadata.get(f"{arch}.attention.head_count_kv"),
        "context_length": metadata.get(f"{arch}.context_length"),
        "tied": "token_embd.weight" in file.tensors and "output.weight" not in file.tensors,
        "tokenizer": _tokenizer(file),
        "lineage": artifact.lineage,
        "edgeadapt": {
            key.removeprefix("edgeadapt."): value
            for key, value in metadata.items()
            if key.startswith("edgeadapt.") and key != "edgeadapt.lineage"
        },
    }
    if described["holds"] == "adapter":
        described["adapter"] = _adapter(file)
    return described


def _by_type(file: GgufFile) -> dict[str, dict[str, int]]:
    """Tensors, parameters and bytes of each type, largest first."""
    found: dict[str, dict[str, int]] = {}
    for tensor in file.tensors.values():
        entry = found.setdefault(tensor.type.name, {"tensors": 0, "parameters": 0, "bytes": 0})
        entry["tensors"] += 1
        entry["parameters"] += prod(tensor.shape)
        entry["bytes"] += _bytes(tensor)
    return dict(sorted(found.items(), key=lambda item: -item[1]["bytes"]))


def _bytes(tensor: GgufTensor) -> int:
    return prod(tensor.shape[:-1]) * tensor.row_bytes


def _tokenizer(file: GgufFile) -> dict[str, Any] | None:
    if "tokenizer.ggml.model" not in file.metadata:
        return None
    ids = {
        key.removeprefix("tokenizer.ggml.").removesuffix("_token_id"): value
        for key, value in file.metadata.items()
        if key.startswith("tokenizer.ggml.") and key.endswith("_token_id")
    }
    return {
        "kind": file.metadata["tokenizer.ggml.model"],
        "pre_tokenizer": file.metadata.get("tokenizer.ggml.pre"),
        "tokens": len(file.metadata.get("tokenizer.ggml.tokens") or []),
        "special_ids": ids,
        "chat_template": "tokenizer.chat_template" in file.metadata,
    }


def _adapter(file: GgufFile) -> dict[str, Any]:
    pairs = [tensor for name, tensor in file.tensors.items() if name.endswith(".lora_b")]
    return {
        "type": file.metadata.get("adapter.type"),
        "alpha": file.metadata.get("adapter.lora.alpha"),
        "ranks": sorted({tensor.shape[-1] for tensor in pairs}),
        "tensors_changed": len(pairs),
    }
