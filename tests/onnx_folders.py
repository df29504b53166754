"""Tiny ONNX folders, exported once for a test session and copied by tests that damage them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from edgeadapt.artifact import Artifact
from edgeadapt.converters.base import ConversionRequest
from edgeadapt.converters.onnx.converter import OnnxConverter
from edgeadapt.safetensors_io import SafetensorsSource


def request(model: Path, quantization: str, **more: object) -> ConversionRequest:
    """A conversion of a model folder as it is."""
    source = SafetensorsSource(model)
    return ConversionRequest(source, model, quantization, "tiny", threads=1, **more)  # type: ignore[arg-type]


@cache
def exported(model: Path, quantization: str) -> Artifact:
    """The model's ONNX folder; not to be changed."""
    out = Path(mkdtemp(dir=model.parent)) / quantization
    return OnnxConverter().convert(request(model, quantization), out)
