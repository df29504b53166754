"""Recognise what lies at a path, and describe it as plain data (the document of `--json`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeadapt.adapters.spec import CONFIG
from edgeadapt.base_model import DEFAULT, default_gguf
from edgeadapt.errors import InputError


def inspect_path(given: str, *, base: str | None = None) -> dict[str, Any]:
    """Describe a base, adapter, GGUF file or ONNX folder, without loading a tensor or torch.

    Args:
        given: a path, or `default`.
        base: of an adapter, where it is not the one that the adapter names.

    Returns:
        `kind` ("adapter", "base", "gguf" or "onnx"), `path`, and what there is to say.

    Raises:
        InputError: nothing is there, or nothing known.
        CorruptFileError: it is damaged.
    """
    path = Path(given).expanduser()
    if given == DEFAULT and not path.exists():
        path = default_gguf()
    if not path.exists():
        raise InputError(
            f"{given} does not exist; expected an adapter folder, a model folder, a .gguf file or "
            f"an ONNX folder (of a hub id, type: edgeadapt import {given} --out DIR)"
        )
    if path.is_file():
        from edgeadapt.inspect.gguf import describe_gguf

        return describe_gguf(path)
    if (path / CONFIG).is_file():
        from edgeadapt.inspect.adapter import describe_adapter

        return describe_adapter(path, base)
    if (path / "genai_config.json").is_file():
        from edgeadapt.inspect.onnx import describe_onnx

        return describe_onnx(path)
    if (path / "config.json").is_file():
        from edgeadapt.inspect.base import describe_model

        return describe_model(path)
    raise InputError(
        f"{path} holds no {CONFIG}, config.json or genai_config.json, so it is no adapter, model "
        "or ONNX export that edgeadapt knows"
    )


def folder_bytes(folder: Path) -> int:
    """Size of every file below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
