"""Describe a Hugging Face model folder."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from edgeadapt.artifact import MANIFEST
from edgeadapt.errors import CorruptFileError
from edgeadapt.files import read_json
from edgeadapt.inspect.report import folder_bytes
from edgeadapt.inspect.targets import merged_targets
from edgeadapt.safetensors_io import SafetensorsSource
from edgeadapt.tokenizer import read_chat_template
from edgeadapt.weights import is_tied, parameter_count


def describe_model(folder: Path) -> dict[str, Any]:
    """Architecture, size, tokenizer, and the formats that it can be exported to.

    Raises:
        InputError: files are missing.
        CorruptFileError: files are damaged.
    """
    source = SafetensorsSource(folder)
    config, tensors = source.config, source.tensors()
    stored: Counter[str] = Counter()
    for info in tensors.values():
        stored[info.dtype] += info.size
    return {
        "kind": "base",
        "path": str(folder),
        "architecture": next(iter(config.get("architectures") or []), None),
        "model_type": config.get("model_type"),
        "parameters": parameter_count(source),
        "tensors": len(tensors),
        "dtypes": dict(stored),
        "bytes": folder_bytes(folder),
        "layers": config.get("num_hidden_layers"),
        "hidden_size": config.get("hidden_size"),
        "heads": config.get("num_attention_heads"),
        "kv_heads": config.get("num_key_value_heads") or config.get("num_attention_heads"),
        "vocab_size": config.get("vocab_size"),
        "context_length": config.get("max_position_embeddings"),
        "sliding_window": config.get("sliding_window"),
        "tied": is_tied(source),
        "tokenizer": describe_tokenizer(folder),
        "lineage": _lineage(folder),
        "targets": [target.record() for target in merged_targets(source, folder)],
    }


def describe_tokenizer(folder: Path) -> dict[str, Any] | None:
    """Kind and size of a folder's tokenizer, and whether there is a chat template."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    record = read_json(path)
    configured = folder / "tokenizer_config.json"
    config = read_json(configured) if configured.is_file() else {}
    try:
        model = record["model"]
        vocabulary = model["vocab"]
        entries = vocabulary if isinstance(vocabulary, dict) else [item[0] for item in vocabulary]
        added = [token["content"] for token in record.get("added_tokens") or []]
        return {
            "kind": _kind(model),
            "tokens": len(entries) + len(set(added) - set(entries)),
            "added": len(added),
            "chat_template": read_chat_template(folder, config) is not None,
        }
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise CorruptFileError(f"{path} is not a tokenizer: {error!r}") from error


def _kind(model: dict[str, Any]) -> str:
    if model.get("type") == "BPE":
        return "BPE with byte fallback" if model.get("byte_fallback") else "byte-level BPE"
    return str(model.get("type"))


def _lineage(folder: Path) -> dict[str, Any] | None:
    path = folder / MANIFEST
    record = read_json(path) if path.is_file() else None
    lineage = record.get("lineage") if isinstance(record, dict) else None
    return lineage if isinstance(lineage, dict) else None
