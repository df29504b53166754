"""What every format's converter offers."""

from __future__ import annotations

import abc
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from edgeadapt.artifact import Artifact
from edgeadapt.converters.gguf.options import GgufOptions
from edgeadapt.converters.onnx.options import OnnxOptions
from edgeadapt.weights import WeightSource, parameter_count


@dataclass(frozen=True)
class ConversionRequest:
    """What to convert and how."""

    source: WeightSource
    """The tensors, merged or not, and the config that fits them."""
    model_folder: Path
    """The base's Hugging Face folder: tokenizer, chat template, generation config."""
    quantization: str
    name: str
    """What the model calls itself in the artifact's metadata."""
    lineage: dict[str, Any] = field(default_factory=dict)
    """Where it came from; stored in the artifact as it is."""
    threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    gguf: GgufOptions = field(default_factory=GgufOptions)
    """What only the GGUF converter understands."""
    onnx: OnnxOptions = field(default_factory=OnnxOptions)
    """What only the ONNX converter understands."""


@dataclass(frozen=True)
class ExportPlan:
    """What an export will take, before anything is written; all sizes in bytes."""

    format: str
    quantization: str
    files: dict[str, int]
    """Name of every file, or of the folder, and its size."""
    memory: int
    """Most anonymous memory of the process and its children: an estimate."""
    disk: int
    """Free space needed while it runs, the output included."""
    exact: bool
    """Whether file sizes are exact; if not they are estimates."""

    @property
    def output(self) -> int:
        """Size of everything that is left behind."""
        return sum(self.files.values())


_BITS = {"int4": 6, "int8": 9, "int8-dynamic": 9, "fp16": 16}
"""Bits for each weight, with scales; of int4 the embedding and sensitive layers keep 8."""

_LIBRARIES = 600 << 20
"""Memory that torch, transformers and onnx take before they hold a model."""


def estimate(format: str, request: ConversionRequest, out: Path) -> ExportPlan:
    """What a converter takes that builds on other libraries.

    That is the whole model in float32 in a scratch folder, twice in memory, and the output beside
    them.
    """
    whole = 4 * parameter_count(request.source)
    bits = _BITS.get(request.quantization, 32)
    output = whole * bits // 32
    return ExportPlan(
        format,
        request.quantization,
        files={out.name: output},
        memory=2 * whole + _LIBRARIES,
        disk=whole + 2 * output,
        exact=False,
    )


class Converter(abc.ABC):
    """One artifact format."""

    format: ClassVar[str]
    quantizations: ClassVar[tuple[str, ...]]
    """Names that `--quant` takes for this format."""

    def plan(self, request: ConversionRequest, out: Path) -> ExportPlan:
        """What `convert` will take; unless a format knows better, an estimate.

        Raises:
            InputError: as `convert`.
        """
        return estimate(self.format, request, out)

    @abc.abstractmethod
    def convert(self, request: ConversionRequest, out: Path) -> Artifact:
        """Write the artifact to `out`, whole or not at all.

        Raises:
            InputError: `out` exists, or the request names something this format lacks.
            UnsupportedError: the model's architecture cannot be converted.
        """
