"""Which converter writes which format; third parties add theirs as `edgeadapt.converters`."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import cast

from edgeadapt.converters.base import Converter
from edgeadapt.errors import InputError

GROUP = "edgeadapt.converters"

_BUILT_IN = {
    "gguf": "edgeadapt.converters.gguf.converter:GgufConverter",
    "onnx": "edgeadapt.converters.onnx.converter:OnnxConverter",
}


def format_names() -> tuple[str, ...]:
    """Every known format, built-in ones first."""
    return (*_BUILT_IN, *(e.name for e in entry_points(group=GROUP) if e.name not in _BUILT_IN))


def get_converter(format: str) -> Converter:
    """The converter that writes `format`.

    Raises:
        InputError: there is none.
    """
    if format in _BUILT_IN:
        module, _, attribute = _BUILT_IN[format].partition(":")
        return cast(Converter, getattr(importlib.import_module(module), attribute)())
    for entry in entry_points(group=GROUP):
        if entry.name == format:
            return cast(Converter, entry.load()())
    raise InputError(f"there is no format {format!r}; choose one of {', '.join(format_names())}")
