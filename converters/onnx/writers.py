"""What can write the graph of an ONNX artifact, by name."""

from __future__ import annotations

import abc
import importlib
from pathlib import Path
from typing import Any, ClassVar, cast

from edgeadapt.converters.base import ConversionRequest
from edgeadapt.converters.onnx.options import Settings
from edgeadapt.errors import InputError


class GraphWriter(abc.ABC):
    """One way from weights to `model.onnx`, `model.onnx.data` and `genai_config.json`."""

    name: ClassVar[str]

    @abc.abstractmethod
    def describe(self, request: ConversionRequest, settings: Settings) -> dict[str, Any]:
        """Name, version and options of the tools, for the artifact's lineage.

        Raises:
            UnsupportedError: the model cannot be written this way.
            MissingExtraError: what it takes is not installed.
        """

    @abc.abstractmethod
    def write(self, request: ConversionRequest, settings: Settings, folder: Path) -> None:
        """Write into an existing folder; scratch files below it are removed again.

        Raises:
            RuntimeFailure: a tool failed or was killed.
        """


_WRITERS = {
    "builder": "edgeadapt.converters.onnx.builder:BuilderWriter",
    "optimum": "edgeadapt.converters.onnx.optimum:OptimumWriter",
}


def writer_names() -> tuple[str, ...]:
    """Names that `--exporter` takes, the default first."""
    return tuple(_WRITERS)


def get_writer(name: str | None) -> GraphWriter:
    """A graph writer by name; None for the default, onnxruntime-genai's builder.

    Raises:
        InputError: there is none of this name.
    """
    name = name or next(iter(_WRITERS))
    if name not in _WRITERS:
        raise InputError(f"there is no ONNX exporter {name!r}; choose {' or '.join(_WRITERS)}")
    module, _, attribute = _WRITERS[name].partition(":")
    return cast(GraphWriter, getattr(importlib.import_module(module), attribute)())
