"""Weights to an ONNX folder that onnxruntime and onnxruntime-genai load."""

from __future__ import annotations

from pathlib import Path

from edgeadapt.artifact import Artifact
from edgeadapt.console import log
from edgeadapt.converters.base import ConversionRequest, Converter, ExportPlan
from edgeadapt.converters.onnx.genai_config import repair_genai_config
from edgeadapt.converters.onnx.options import QUANTIZATIONS, Settings, settle
from edgeadapt.converters.onnx.source_folder import copy_tokenizer
from edgeadapt.converters.onnx.writers import GraphWriter, choose_writer
from edgeadapt.files import atomic_folder, check_disk
from edgeadapt.tokenizer import ModelTokenizer
from edgeadapt.weights import is_tied


class OnnxConverter(Converter):
    """A graph writer of one's choice; the folder around the graph is the same for all."""

    format = "onnx"
    quantizations = QUANTIZATIONS

    def plan(self, request: ConversionRequest, out: Path) -> ExportPlan:
        """The size to the byte from our own writer, else an estimate; see `Converter.plan`."""
        writer, settings = _prepare(request)
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
        writer, settings = _prepare(request)
        described = writer.describe(request, settings)
        if settings.symmetric and request.onnx.symmetric is None:
            described["zero_points"] = _left_out(writer, settings)
            log.warning("%s", described["zero_points"])
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


def _prepare(request: ConversionRequest) -> tuple[GraphWriter, Settings]:
    """What writes the graph, and how; whether zero points can be packed depends on the writer."""
    tied = is_tied(request.source)
    settings = settle(request.quantization, request.onnx, tied=tied)
    writer = choose_writer(request, settings)
    if not writer.packs_odd_zeros:
        shapes = [info.shape for info in request.source.tensors().values()]
        widths = {shape[1] for shape in shapes if len(shape) == 2}
        settings = settle(request.quantization, request.onnx, tied=tied, widths=widths)
    return writer, settings


def _left_out(writer: GraphWriter, settings: Settings) -> str:
    return (
        f"zero points are left out, as with --symmetric: the exporter {writer.name} cannot pack "
        f"them, since some rows have an odd number of blocks of {settings.block_size}; another "
        "--block-size may have an even one"
    )
