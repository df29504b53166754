"""The merged model as a float32 Hugging Face folder, which exporters read."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeadapt.console import progress
from edgeadapt.converters.base import ConversionRequest
from edgeadapt.files import write_json
from edgeadapt.safetensors_io import write_safetensors
from edgeadapt.tokenizer import TOKENIZER_FILES
from edgeadapt.weights import Float32Array


def write_source(request: ConversionRequest, folder: Path, config: dict[str, Any]) -> None:
    """Write config, tokenizer and weights.

    In float32, since exporters compute some constants in the weights' own type (Gemma's norm
    offset in 16 bits: an error of 1e-2 in the logits).

    Args:
        request: the model.
        folder: to be made.
        config: its config.json, in the words of the library that will read it.
    """
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config)
    copy_tokenizer(request.model_folder, folder)
    tensors = request.source.tensors()
    size = sum(info.size for info in tensors.values())
    with progress("writing float32 weights", size / 1e6, "million weights") as advance:

        def read(name: str, start: int, stop: int) -> Float32Array:
            rows = request.source.rows(name, start, stop)
            advance(rows.size / 1e6)
            return rows

        wanted = {name: replace(info, dtype="F32") for name, info in tensors.items()}
        write_safetensors(folder / "model.safetensors", wanted, read, {"format": "pt"})


def plain_config(config: dict[str, Any]) -> dict[str, Any]:
    """The config of float32 tensors that need no code from elsewhere."""
    dropped = ("torch_dtype", "quantization_config", "auto_map")
    return {key: value for key, value in config.items() if key not in dropped} | {
        "dtype": "float32"
    }


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy what text needs, as far as it is there."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
