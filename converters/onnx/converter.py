"""Weights to an ONNX folder that onnxruntime and onnxruntime-genai load."""

from __future__ import annotations

from pathlib import Path

from edgeadapt.artifact import Artifact
from edgeadapt.converters.base import ConversionRequest, Converter, ExportPlan
from edgeadapt.converters.onnx.genai_config import repair_genai_config
from edgeadapt.converters.onnx.options import QUANTIZATIONS, Settings, settle
from edgeadapt.converters.onnx.source_folder import copy_tokenizer
from edgeadapt.converters.onnx.writers import choose_writer
from edgeadapt.files import atomic_folder, check_disk
from edgeadapt.tokenizer import ModelTokenizer
from edgeadapt.weights import is_tied


class OnnxConverter(Converter):
    """A graph writer of one's choice; the folder around the graph is the same for all."""

    format = "onnx"
    quantizations = QUANTIZATIONS

    def plan(self, request: ConversionRequest, out: Path) -> ExportPlan:
        """The size to the byte from our own writer, else an estimate; see `Converter.plan`."""
        settings = _settings(request)
        writer = choose_writer(request, settings)
        writer.describe(request, settings)  # refuses what it cannot write
        plan = writer.plan(request, settings, out)
        return plan or super().plan(request, out)

    def convert(self, request: ConversionRequest, out: Path) -> Artifact:
        """Write a folder: graph, weights, genai_config.json, tokenizer files, manifest.

        Raises:
            InputError: `out` exists, an option is unknown, or the base has no tokenizer.
            UnsupportedError: the model's architecture cannot be converted.
            MissingExtraError: the exporter or what it needs is not installed.
            RuntimeFailure: the exporter failed.
        """
        settings = _settings(request)
        writer = choose_writer(request, settings)
        described = writer.describe(request, settings)
        tokenizer = ModelTokenizer.from_folder(request.model_folder)
        lineage = request.lineage | {
            "name": request.name,
            "exporter": writer.name,
            "settings": settings.record(),
        }
        artifact = Artifact(out, self.format, request.quantization, lineage | described)
        check_disk(out, self.plan(request, out).disk)
        with atomic_folder(out) as partial:
            writer.write(request, settings, partial)
            copy_tokenizer(request.model_folder, partial)
            repair_genai_config(partial, tokenizer, request.source.config, request.onnx.session)
            artifact.write_manifest(partial)
        return artifact


def _settings(request: ConversionRequest) -> Settings:
    shapes = [info.shape for info in request.source.tensors().values()]
    widths = {shape[1] for shape in shapes if len(shape) == 2}
    return settle(request.quantization, request.onnx, tied=is_tied(request.source), widths=widths)
