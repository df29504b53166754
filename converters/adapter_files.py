"""Formats in which an adapter can be a file of its own, loaded beside the base's artifact."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from edgeadapt.artifact import Artifact
from edgeadapt.converters.registry import format_names
from edgeadapt.errors import InputError, UnsupportedError
from edgeadapt.weights import LowRankUpdate, WeightSource


@dataclass(frozen=True)
class AdapterRequest:
    """What to write and how."""

    base: WeightSource
    """The base that the adapter belongs to; only its shapes and config are looked at."""
    updates: Sequence[LowRankUpdate]
    quantization: str
    name: str
    lineage: dict[str, Any] = field(default_factory=dict)


AdapterWriter = Callable[[AdapterRequest, Path], Artifact]
"""Writes the adapter whole or not at all; raises InputError where the format cannot carry it."""

_WRITERS = {
    "gguf": "edgeadapt.converters.gguf.lora:write_lora",
    "onnx": "edgeadapt.converters.onnx.stream.adapters:write_adapter",
}


def get_adapter_writer(format: str) -> AdapterWriter:
    """What writes an adapter on its own in `format`.

    Raises:
        InputError: there is no such format.
        UnsupportedError: the format has no adapters of their own.
    """
    if format not in format_names():
        raise InputError(f"there is no format {format!r}; choose {' or '.join(_WRITERS)}")
    if format not in _WRITERS:
        raise UnsupportedError(
            f"{format} has no adapters as files of their own here, only {', '.join(_WRITERS)} has; "
            "merge it: --adapter-mode merged"
        )
    module, _, name = _WRITERS[format].partition(":")
    return cast(AdapterWriter, getattr(importlib.import_module(module), name))
