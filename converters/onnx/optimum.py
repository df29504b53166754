"""The graph as optimum exports it, for architectures that the builder lacks.

optimum needs older libraries than ours, so it lives in an environment of its own, which
`edgeadapt setup optimum` makes, and runs there as a child process. What it writes is float32; it
is quantized here, with onnxruntime's quantizers.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
from dataclasses import replace
from importlib.metadata import version
from importlib.resources import files
from math import prod
from pathlib import Path
from typing import Any

from edgeadapt.converters.base import ConversionRequest, ExportPlan, estimate
from edgeadapt.converters.onnx.builder import GRAPHS, check_installed
from edgeadapt.converters.onnx.child import Step, run_child, run_steps
from edgeadapt.converters.onnx.names import genai_names
from edgeadapt.converters.onnx.options import Settings
from edgeadapt.converters.onnx.source_folder import plain_config, write_source
from edgeadapt.converters.onnx.writers import GraphWriter
from edgeadapt.errors import MissingSetupError, UnsupportedError
from edgeadapt.files import cache_dir, read_json, write_json
from edgeadapt.weights import find_embedding, parameter_count

CONSTRAINTS = "constraints-optimum.txt"
READY = "edgeadapt-ready.json"
"""Written last into an environment: versions of what it holds."""


def environment() -> Path:
    """Folder of optimum's environment: `$EDGEADAPT_OPTIMUM`, else one in the cache.

    The folder in the cache is named by the pinned versions and the Python.
    """
    given = os.environ.get("EDGEADAPT_OPTIMUM")
    if given:
        return Path(given)
    text = (files("edgeadapt.converters.onnx") / CONSTRAINTS).read_text(encoding="utf-8")
    key = hashlib.sha256(f"{text}{sys.version}{platform.machine()}".encode()).hexdigest()
    return cache_dir() / f"optimum-{key[:12]}"


def environment_python(folder: Path) -> Path:
    """The interpreter of a virtual environment."""
    windows = folder / "Scripts" / "python.exe"
    return windows if windows.exists() else folder / "bin" / "python"


def installed() -> dict[str, str] | None:
    """Versions of what optimum's environment holds; None where there is none."""
    folder = environment()
    if not (folder / READY).is_file() or not environment_python(folder).exists():
        return None
    versions: dict[str, str] = read_json(folder / READY)
    return versions


class OptimumWriter(GraphWriter):
    """Plain ONNX operators, and a KV cache that grows; slower than fused attention."""

    name = "optimum"

    def describe(self, request: ConversionRequest, settings: Settings) -> dict[str, Any]:
        """See `GraphWriter.describe`.

        Raises:
            MissingSetupError: optimum's environment is not there.
            UnsupportedError: float16 was asked for.
        """
        versions = installed()
        if versions is None:
            raise MissingSetupError(
                "--exporter optimum runs in an environment of its own, which is not installed; "
                "type: edgeadapt setup optimum"
            )
        check_installed(("onnx", "onnxruntime"))
        if settings.quantization == "fp16":
            raise UnsupportedError(
                "--exporter optimum has no fp16; choose fp32, int8, int8-dynamic or int4"
            )
        described: dict[str, Any] = {"optimum": versions}
        if settings.quantization != "fp32":
            described["settings"] = replace(settings, shared_embeddings=False).record()
            described["quantizer"] = {"name": "onnxruntime", "version": version("onnxruntime")}
        return described

    def plan(self, request: ConversionRequest, settings: Settings, out: Path) -> ExportPlan:
        """An estimate: the source, what optimum writes and the graph made of it are float32 each.

        Quantized, the embedding keeps a float32 table of its own.
        """
        general = estimate("onnx", request, out)
        whole = 4 * parameter_count(request.source)
        table = 4 * prod(request.source.tensors()[find_embedding(request.source)].shape)
        output = general.output if settings.quantization == "fp32" else general.output + table
        return replace(general, files={out.name: output}, disk=3 * whole + GRAPHS)

    def write(self, request: ConversionRequest, settings: Settings, folder: Path) -> None:
        """See `GraphWriter.write`."""
        scratch = folder / "scratch"
        config = for_transformers_4(plain_config(request.source.config))
        write_source(request, scratch / "source", config)
        layers = int(config.get("num_hidden_layers") or config.get("n_layer") or 1)
        source, out = (str(path.resolve()) for path in (scratch / "source", folder))
        script = files("edgeadapt.converters.onnx") / "optimum_child.py"
        outcome = run_child(
            # -I: neither the script's folder nor PYTHONPATH may shadow what is installed there.
            [str(environment_python(environment())), "-I", "-u", str(script)],
            {"source": source, "out": out, "scratch": str(scratch.resolve() / "optimum")},
            scratch,
            what="optimum's exporter",
            layers=layers,
            threads=request.threads,
            read_share=1.0,
        )
        write_json(folder / "genai_config.json", genai_config(config, outcome["cache"]))
        for name in ("source", "optimum"):  # quantizing needs their room
            shutil.rmtree(scratch / name, ignore_errors=True)
        if steps := quantizing(settings, layers):
            run_steps(
                [step | {"folder": out} for step in steps],
                scratch,
                layers=layers,
                threads=request.threads,
                read_share=0.0,
            )
        shutil.rmtree(scratch)


def quantizing(settings: Settings, layers: int) -> list[Step]:
    """What is done to the float32 graph."""
    if settings.preset is not None:
        return [{"step": "dynamic", "preset": settings.preset}]
    if settings.algorithm is None:
        return []
    return [
        {
            "step": "nbits",
            "algorithm": settings.algorithm,
            "bits": settings.bits,
            "block_size": settings.block_size,
            "symmetric": settings.symmetric,
            "accuracy_level": settings.accuracy_level,
            "mixed_layers": layers if settings.mixed else 0,
        }
    ]


def for_transformers_4(config: dict[str, Any]) -> dict[str, Any]:
    """A config.json of transformers 5 in the words of 4.57.

    It kept the rotary base in `rope_theta`, scaling apart from it in `rope_scaling`, and Gemma 3's
    second base in `rope_local_base_freq`.
    """
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict):
        return config
    older = {key: value for key, value in config.items() if key != "rope_parameters"}
    if "full_attention" in rope:
        older["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    scaling = dict(rope)
    for key in ("rope_theta", "partial_rotary_factor"):
        if key in scaling:
            older[key] = scaling.pop(key)
    if scaling.get("rope_type", "default") != "default":
        older["rope_scaling"] = scaling
    return older


def genai_config(config: dict[str, Any], cache: dict[str, int]) -> dict[str, Any]:
    """What onnxruntime-genai needs to know of a decoder whose KV cache grows.

    Args:
        config: the model's config.json.
        cache: `layers`, `heads` and `size` of the graph's KV cache.
    """
    context = config.get("max_position_embeddings") or config.get("n_positions") or 2048
    heads = config.get("num_attention_heads") or config.get("n_head")
    return {
        "model": {
            "type": "decoder",
            "bos_token_id": config.get("bos_token_id") or 0,
            "eos_token_id": config.get("eos_token_id") or 0,
            "pad_token_id": config.get("pad_token_id") or 0,
            "context_length": context,
            "vocab_size": config["vocab_size"],
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": "model.onnx",
                "head_size": cache["size"],
                "hidden_size": config.get("hidden_size") or config.get("n_embd"),
                "num_attention_heads": heads,
                "num_hidden_layers": cache["layers"],
                "num_key_value_heads": cache["heads"],
                **genai_names(positions=True),
            },
        },
        "search": {"max_length": context, "past_present_share_buffer": False},
    }
