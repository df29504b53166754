"""Weights to an ONNX folder that onnxruntime and onnxruntime-genai load."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edgeadapt.artifact import Artifact
from edgeadapt.console import progress
from edgeadapt.converters.base import ConversionRequest, Converter
from edgeadapt.converters.onnx.build import build
from edgeadapt.converters.onnx.genai_config import repair_genai_config
from edgeadapt.converters.onnx.options import QUANTIZATIONS, builder_options
from edgeadapt.errors import InputError, MissingExtraError
from edgeadapt.files import atomic_folder, check_disk, write_json
from edgeadapt.safetensors_io import write_safetensors
from edgeadapt.tokenizer import TOKENIZER_FILES, ModelTokenizer
from edgeadapt.weights import Float32Array

_NEEDS = ("torch", "transformers", "onnx", "onnx_ir", "onnxruntime", "onnxruntime_genai")


class OnnxConverter(Converter):
    """Through onnxruntime-genai's model builder, which reads a folder and knows the families."""

    format = "onnx"
    quantizations = QUANTIZATIONS

    def convert(self, request: ConversionRequest, out: Path) -> Artifact:
        """Write a folder: graph, weights, genai_config.json, tokenizer files, manifest.

        Raises:
            InputError: `out` exists, the quantization is unknown, or the base has no tokenizer.
            UnsupportedError: the model's architecture cannot be converted.
            MissingExtraError: the builder or what it needs is not installed.
            RuntimeFailure: the builder failed.
        """
        if request.quantization not in QUANTIZATIONS:
            raise InputError(
                f"ONNX has no quantization {request.quantization!r}; "
                f"choose one of {', '.join(QUANTIZATIONS)}"
            )
        for module in _NEEDS:
            if importlib.util.find_spec(module) is None:
                raise MissingExtraError(module, "convert", "an ONNX export")
        config = request.source.config
        shapes = [info.shape for info in request.source.tensors().values()]
        widths = {shape[1] for shape in shapes if len(shape) == 2}
        options = builder_options(request.quantization, config, widths)
        tokenizer = ModelTokenizer.from_folder(request.model_folder)
        made_by = {"name": "onnxruntime-genai", "version": version("onnxruntime-genai")}
        lineage = request.lineage | {"name": request.name, "builder": made_by | options}
        artifact = Artifact(out, self.format, request.quantization, lineage)
        check_disk(out, self.plan(request, out).disk)
        with atomic_folder(out) as partial:
            scratch = partial / "scratch"  # below the partial folder, so that it goes with it
            _write_source(request, scratch / "source")
            build(
                scratch / "source",
                partial,
                precision=request.quantization,
                options=options,
                layers=int(config.get("num_hidden_layers", 1)),
                threads=request.threads,
            )
            shutil.rmtree(scratch)
            _copy_tokenizer(request.model_folder, partial)
            repair_genai_config(partial, tokenizer, config)
            artifact.write_manifest(partial)
        return artifact


def _write_source(request: ConversionRequest, folder: Path) -> None:
    """The folder that the builder reads, in float32.

    From 16-bit weights it computes some constants in 16 bits (Gemma's norm offset: an error of
    1e-2 in the logits).
    """
    folder.mkdir(parents=True)
    write_json(folder / "config.json", _plain_config(request.source.config))
    _copy_tokenizer(request.model_folder, folder)
    tensors = request.source.tensors()
    size = sum(info.size for info in tensors.values())
    with progress("writing float32 weights", size / 1e6, "million weights") as advance:

        def read(name: str, start: int, stop: int) -> Float32Array:
            rows = request.source.rows(name, start, stop)
            advance(rows.size / 1e6)
            return rows

        wanted = {name: replace(info, dtype="F32") for name, info in tensors.items()}
        write_safetensors(folder / "model.safetensors", wanted, read)


def _plain_config(config: dict[str, Any]) -> dict[str, Any]:
    """The config of float32 tensors that need no code from elsewhere."""
    dropped = ("torch_dtype", "quantization_config", "auto_map")
    return {key: value for key, value in config.items() if key not in dropped} | {
        "dtype": "float32"
    }


def _copy_tokenizer(source: Path, target: Path) -> None:
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
