"""Tiny ONNX folders, exported once for a test session and copied by tests that damage them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from edgeadapt.artifact import Artifact
from edgeadapt.converters.base import ConversionRequest
from edgeadapt.converters.onnx.converter import OnnxConverter
from edgeadapt.converters.onnx.options import OnnxOptions
from edgeadapt.safetensors_io import SafetensorsSource


def request(model: Path, quantization: str, **more: object) -> ConversionRequest:
    """A conversion of a model folder as it is."""
    source = SafetensorsSource(model)
    return ConversionRequest(source, model, quantization, "tiny", threads=1, **more)  # type: ignore[arg-type]


@cache
def exported(
    model: Path, quantization: str, exporter: str | None = None, algorithm: str | None = None
) -> Artifact:
    """The model's ONNX folder, by the default exporter unless one is named; not to be changed."""
    out = Path(mkdtemp(dir=model.parent)) / quantization
    options = OnnxOptions(exporter=exporter, algorithm=algorithm)
    return OnnxConverter().convert(request(model, quantization, onnx=options), out)
