"""Which converter writes which format; third parties add theirs as `edgeadapt.converters`."""

from __future__ import annotations

from typing import cast

from edgeadapt.converters.base import Converter
from edgeadapt.plugins import Registry

_CONVERTERS = Registry(
    "format",
    "edgeadapt.converters",
    {
        "gguf": "edgeadapt.converters.gguf.converter:GgufConverter",
        "onnx": "edgeadapt.converters.onnx.converter:OnnxConverter",
    },
)


def format_names() -> tuple[str, ...]:
    """Every known format, built-in ones first."""
    return _CONVERTERS.names()


def get_converter(format: str) -> Converter:
    """The converter that writes `format`.

    Raises:
        InputError: there is none.
    """
    return cast(Converter, _CONVERTERS.load(format)())
