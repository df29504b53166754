"""Describe an ONNX folder by what lies beside its graph; the graph itself is not parsed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeadapt.artifact import open_artifact
from edgeadapt.errors import CorruptFileError
from edgeadapt.files import read_json
from edgeadapt.inspect.base import describe_tokenizer
from edgeadapt.inspect.report import folder_bytes
from edgeadapt.lora_slots import FILE, FOLDER, SUFFIX, LoraSlots


def describe_onnx(folder: Path) -> dict[str, Any]:
    """Model type, precision, KV layout, ids that end a generation, and files.

    Raises:
        CorruptFileError: genai_config.json is not a decoder's.
    """
    artifact = open_artifact(folder)
    path = folder / "genai_config.json"
    genai = read_json(path)
    try:
        model, decoder = genai["model"], genai["model"]["decoder"]
        eos = model.get("eos_token_id")
        inputs = dict(decoder["inputs"])
        search = genai.get("search") or {}
        return {
            "kind": "onnx",
            "path": str(folder),
            "model_type": model.get("type"),
            "quantization": artifact.quantization,
            "bytes": folder_bytes(folder),
            "context_length": model.get("context_length"),
            "vocab_size": model.get("vocab_size"),
            "layers": decoder.get("num_hidden_layers"),
            "hidden_size": decoder.get("hidden_size"),
            "heads": decoder.get("num_attention_heads"),
            "kv_heads": decoder.get("num_key_value_heads"),
            "kv_cache": {
                "layout": "batch, key-value heads, tokens, head size",
                "head_size": decoder.get("head_size"),
                "inputs": inputs.get("past_key_names"),
                "shared_buffer": search.get("past_present_share_buffer"),
            },
            "stop_ids": eos if isinstance(eos, list) else [eos],
            "graph": decoder.get("filename"),
            "files": {
                item.relative_to(folder).as_posix(): item.stat().st_size
                for item in sorted(folder.rglob("*"))
                if item.is_file()
            },
            "tokenizer": describe_tokenizer(folder),
            "adapters": _adapters(folder),
            "lineage": artifact.lineage,
        }
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CorruptFileError(
            f"{path} is not a decoder's config: {error!r}; export again"
        ) from error


def _adapters(folder: Path) -> dict[str, Any] | None:
    """Which adapters lie beside the graph, and how many products take one; None: it takes none."""
    if not (folder / FILE).is_file():
        return None
    files = sorted((folder / FOLDER).glob(f"*{SUFFIX}"))
    return {"products": len(LoraSlots.read(folder).products), "files": [f.name for f in files]}
