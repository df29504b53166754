"""What can write the graph of an ONNX artifact, by name."""

from __future__ import annotations

import abc
import importlib
from pathlib import Path
from typing import Any, ClassVar, cast

from edgeadapt.adapters.sequential import form_of
from edgeadapt.converters.base import ConversionRequest, ExportPlan
from edgeadapt.converters.onnx.options import Settings
from edgeadapt.errors import InputError
from edgeadapt.extras import need


class GraphWriter(abc.ABC):
    """One way from weights to `model.onnx`, `model.onnx.data` and `genai_config.json`."""

    name: ClassVar[str]
    packs_odd_zeros: ClassVar[bool] = False
    """It packs 4-bit zero points also of rows with an odd number of them; onnxruntime's quantizers,
    which most writers quantize with, do not."""

    @abc.abstractmethod
    def describe(self, request: ConversionRequest, settings: Settings) -> dict[str, Any]:
        """Name, version and options of the tools, for the artifact's lineage.

        Raises:
            UnsupportedError: the model cannot be written this way.
            MissingExtraError: what it takes is not installed.
        """

    def plan(self, request: ConversionRequest, settings: Settings, out: Path) -> ExportPlan | None:
        """What `write` will take; None where nothing better than the general estimate is known."""
        return None

    @abc.abstractmethod
    def write(self, request: ConversionRequest, settings: Settings, folder: Path) -> None:
        """Write into an existing folder; scratch files below it are removed again.

        Raises:
            RuntimeFailure: a tool failed or was killed.
        """


_WRITERS = {
    "stream": "edgeadapt.converters.onnx.stream.writer:StreamWriter",
    "builder": "edgeadapt.converters.onnx.builder:BuilderWriter",
    "optimum": "edgeadapt.converters.onnx.optimum:OptimumWriter",
}


def writer_names() -> tuple[str, ...]:
    """Names that `--exporter` takes, the default first."""
    return tuple(_WRITERS)


def get_writer(name: str) -> GraphWriter:
    """A graph writer by name.

    Raises:
        InputError: there is none of this name.
    """
    if name not in _WRITERS:
        raise InputError(f"there is no ONNX exporter {name!r}; choose {' or '.join(_WRITERS)}")
    module, _, attribute = _WRITERS[name].partition(":")
    return cast(GraphWriter, getattr(importlib.import_module(module), attribute)())


def choose_writer(request: ConversionRequest, settings: Settings) -> GraphWriter:
    """The writer that was asked for, else our own, else for what it lacks the builder.

    Raises:
        InputError: there is none of this name, or it cannot keep adapters apart as asked.
        MissingExtraError: the package onnx is not installed.
    """
    need("onnx", "an ONNX export")
    from edgeadapt.converters.onnx.stream.writer import StreamWriter

    wanted, own = request.onnx.exporter, StreamWriter()
    if request.onnx.adapters or form_of(request.source.config):
        if wanted not in (None, own.name):
            raise InputError(
                f"the exporter {wanted} makes no graphs that take or have adapters; use stream"
            )
        return own
    if wanted is not None:
        return get_writer(wanted)
    return own if own.refuses(request, settings) is None else get_writer("builder")
