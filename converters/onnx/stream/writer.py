"""The graph from our own writer: one pass over the weights, without torch or transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, cast

import onnx

from edgeadapt import __version__
from edgeadapt.adapters.sequential import form_of
from edgeadapt.console import progress
from edgeadapt.converters.base import ConversionRequest, ExportPlan
from edgeadapt.converters.onnx.options import Settings
from edgeadapt.converters.onnx.stream import adapters
from edgeadapt.converters.onnx.stream.architecture import describe
from edgeadapt.converters.onnx.stream.blocks import ALGORITHMS, Algorithm, BlockScheme
from edgeadapt.converters.onnx.stream.data import CHUNK_BYTES, write_data
from edgeadapt.converters.onnx.stream.decoder import DecoderGraph
from edgeadapt.converters.onnx.stream.families import unsupported
from edgeadapt.converters.onnx.stream.genai import genai_config
from edgeadapt.converters.onnx.stream.precision import Precision
from edgeadapt.converters.onnx.writers import GraphWriter
from edgeadapt.errors import UnsupportedError
from edgeadapt.files import write_json
from edgeadapt.lora_slots import FOLDER, SUFFIX

GRAPH = "model.onnx"

_PROCESS = 90 << 20
"""Anonymous memory of the interpreter, NumPy, onnx, the tokenizer and what they leave behind."""

_CHUNK_COPIES = 24
"""What quantizing makes of a chunk of float32: sums and codes in float64, and their temporaries."""


class StreamWriter(GraphWriter):
    """The default for the families that it knows."""

    name: ClassVar[str] = "stream"
    packs_odd_zeros: ClassVar[bool] = True

    def refuses(self, request: ConversionRequest, settings: Settings) -> str | None:
        """Why a model cannot be written here, or not as asked for; None if it can."""
        if settings.quantization == "int8-dynamic":
            return "the stream exporter has no int8-dynamic"
        if settings.algorithm is not None and settings.algorithm not in ALGORITHMS:
            return (
                f"the stream exporter has no algorithm {settings.algorithm}, only "
                f"{' and '.join(ALGORITHMS)}"
            )
        return unsupported(request.source.config)

    def describe(self, request: ConversionRequest, settings: Settings) -> dict[str, Any]:
        """See `GraphWriter.describe`."""
        if reason := self.refuses(request, settings):
            other = "try --exporter builder"
            if request.onnx.adapters:
                other = "merge the adapter: --adapter-mode merged"
            elif form_of(request.source.config):
                other = "train --method adapter or lora, which every exporter can merge"
            raise UnsupportedError(f"{reason}; {other}")
        self._job(request, settings)  # finds what is missing before anything is written
        writer = {"name": "edgeadapt", "version": __version__, "onnx": onnx.__version__}
        names = [adapter.name for adapter in request.onnx.adapters]
        return {"writer": writer} | ({"separate_adapters": names} if names else {})

    def plan(self, request: ConversionRequest, settings: Settings, out: Path) -> ExportPlan:
        """Graph and weights to the byte; tokenizer and config files are not counted."""
        job = self._job(request, settings)
        graph = len(job.graph.serialized())
        in_flight = 2 * request.threads + 1
        size = job.layout.size + graph
        return ExportPlan(
            format="onnx",
            quantization=settings.quantization,
            files={out.name: size},
            memory=_PROCESS
            + in_flight * CHUNK_BYTES
            + request.threads * _CHUNK_COPIES * CHUNK_BYTES,
            disk=size,
            exact=False,
        )

    def write(self, request: ConversionRequest, settings: Settings, folder: Path) -> None:
        """See `GraphWriter.write`."""
        job = self._job(request, settings)
        with progress("writing the ONNX weights", job.layout.size / 1e6, "MB") as advance:
            write_data(
                folder / job.data_name,
                job.layout,
                request.source,
                request.threads,
                lambda size: advance(size / 1e6),
            )
        (folder / GRAPH).write_bytes(job.graph.serialized())
        config = genai_config(job.decoder, request.source.config, request.model_folder)
        write_json(folder / "genai_config.json", config)
        if request.onnx.adapters:
            self._write_adapters(request, job, folder)

    def _job(self, request: ConversionRequest, settings: Settings) -> DecoderGraph:
        decoder = describe(request.source)
        sources = [update.name for given in request.onnx.adapters for update in given.updates]
        linears = adapters.adapted(decoder, sources)
        return DecoderGraph(decoder, _precision(settings), {linear.name for linear in linears})

    def _write_adapters(self, request: ConversionRequest, job: DecoderGraph, folder: Path) -> None:
        sources = [update.name for given in request.onnx.adapters for update in given.updates]
        slots = adapters.slots(job.decoder, sources, request.lineage["base"]["sha256"])
        slots.write(folder)
        (folder / FOLDER).mkdir()
        for given in request.onnx.adapters:
            path = folder / FOLDER / f"{given.name}{SUFFIX}"
            parameters = adapters.adapter_parameters(job.decoder, given.updates)
            adapters.save(parameters, slots.model_version, path)


def _precision(settings: Settings) -> Precision:
    if settings.algorithm is None:
        return Precision(settings.quantization)
    scheme = BlockScheme(
        4 if settings.bits == 4 else 8,
        settings.block_size or 32,
        bool(settings.symmetric),
        cast(Algorithm, settings.algorithm),
    )
    return Precision(settings.quantization, scheme, settings.mixed, settings.accuracy_level or 0)
