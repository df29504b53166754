"""The graph as onnxruntime-genai's model builder writes it.

Option names are those of `python -m onnxruntime_genai.models.builder --help` (0.18).
"""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edgeadapt.converters.base import ConversionRequest, ExportPlan, estimate
from edgeadapt.converters.onnx.child import Step, run_steps
from edgeadapt.converters.onnx.options import Settings, sensitive_layers
from edgeadapt.converters.onnx.source_folder import plain_config, write_source
from edgeadapt.converters.onnx.writers import GraphWriter
from edgeadapt.errors import MissingExtraError, UnsupportedError
from edgeadapt.weights import parameter_count

ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "GemmaForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "Phi3ForCausalLM",
    "GraniteForCausalLM",
)
"""Those whose float32 graph was compared with torch; the builder gets some others wrong (OLMo), and
fails on layers without rotary embedding (SmolLM3)."""

ROPE_TYPES = ("default", "llama3", "longrope")
"""Rotary scalings for which the graph equals torch; with linear and yarn it is off by 5e-3."""

NEEDS = ("torch", "transformers", "onnx", "onnx_ir", "onnxruntime", "onnxruntime_genai")

GRAPHS = 16 << 20
"""Disk for what lies beside the weights: graphs, tokenizer, reports."""

_ALWAYS = {
    "hf_token": "false",
    "hf_remote": "false",
    # Plain onnxruntime refuses the empty past that a window-sized cache starts with.
    "windowed_kv_cache": "false",
}

_LAYER_MATMULS = (
    *(f"attn/{name}_proj" for name in ("qkv", "q", "k", "v", "o")),
    *(f"mlp/{name}_proj" for name in ("gate", "up", "down", "gate_up")),
)
"""Names under which the builder multiplies by a decoder layer's weights."""


class BuilderWriter(GraphWriter):
    """The default: graphs with fused attention, for the families that the builder gets right."""

    name = "builder"

    def describe(self, request: ConversionRequest, settings: Settings) -> dict[str, Any]:
        """See `GraphWriter.describe`; refuses what was not compared with torch."""
        check_supported(request.source.config)
        check_installed(NEEDS)
        made_by = {"name": "onnxruntime-genai", "version": version("onnxruntime-genai")}
        described: dict[str, Any] = {"builder": made_by | builder_options(settings)}
        if after(settings):
            described["quantizer"] = {"name": "onnxruntime", "version": version("onnxruntime")}
        return described

    def plan(self, request: ConversionRequest, settings: Settings, out: Path) -> ExportPlan:
        """An estimate; what is quantized afterwards is first written in float32.

        onnxruntime's int8 quantizer writes the float32 graph once more for itself.
        """
        general = estimate("onnx", request, out)
        if not after(settings):
            return general
        copies = 3 if settings.quantization == "int8-dynamic" else 2
        whole = 4 * parameter_count(request.source)
        return replace(general, disk=copies * whole + GRAPHS)

    def write(self, request: ConversionRequest, settings: Settings, folder: Path) -> None:
        """See `GraphWriter.write`."""
        scratch = folder / "scratch"  # below the partial folder, so that it goes with it
        write_source(request, scratch / "source", plain_config(request.source.config))
        layers = int(request.source.config.get("num_hidden_layers", 1))
        options = builder_options(settings)
        if settings.algorithm == "hqq":
            options["nodes_to_exclude"] = ",".join(_hqq_nodes(settings, layers))
        build: Step = {
            "step": "build",
            "source": str((scratch / "source").resolve()),
            "out": str(folder.resolve()),
            "cache": str((scratch / "cache").resolve()),
            "precision": precision(settings),
            "options": options,
        }
        later = [step | {"folder": str(folder.resolve())} for step in after(settings)]
        run_steps(
            [build, *later],
            scratch,
            layers=layers,
            threads=request.threads,
            read_share=1.0 if settings.algorithm is None else 0.5,
        )
        shutil.rmtree(scratch)


def check_installed(modules: tuple[str, ...]) -> None:
    """See that Python modules are there.

    Raises:
        MissingExtraError: one is not.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(module, "convert", "an ONNX export")


def precision(settings: Settings) -> str:
    """What the builder calls it; the weights of int8-dynamic are quantized afterwards."""
    return "fp32" if settings.quantization == "int8-dynamic" else settings.quantization


def builder_options(settings: Settings) -> dict[str, str]:
    """The builder's extra options."""
    shared = {"shared_embeddings": _flag(settings.shared_embeddings)}
    if settings.algorithm is None:
        return _ALWAYS | shared
    mixed = {"matmul_mixed_precision": "last_matmul:int8,mixed_layers:int8"}
    return (
        _ALWAYS
        | shared
        | {
            # What HQQ does not do, the builder does: the head, which the embedding shares.
            "algo_config": "rtn" if settings.algorithm == "hqq" else settings.algorithm,
            "block_size": str(settings.block_size),
            "is_symmetric": _flag(bool(settings.symmetric)),
            "accuracy_level": str(settings.accuracy_level),
        }
        | (mixed if settings.mixed else {})
    )


def after(settings: Settings) -> list[Step]:
    """What is done to the builder's graph."""
    if settings.quantization == "int8-dynamic":
        return [{"step": "dynamic", "preset": settings.preset}]
    if settings.algorithm == "hqq":
        return [
            {
                "step": "nbits",
                "algorithm": "hqq",
                "bits": settings.bits,
                "block_size": settings.block_size,
                "symmetric": False,
                "accuracy_level": settings.accuracy_level,
            }
        ]
    return []


def check_supported(config: dict[str, Any]) -> None:
    """See that the builder's graph was compared with torch for this kind of model.

    Raises:
        UnsupportedError: it was not.
    """
    names = config.get("architectures") or ["none"]
    if names[0] not in ARCHITECTURES:
        raise UnsupportedError(
            f"onnxruntime-genai's builder does not handle the architecture {names[0]}; it handles "
            f"{', '.join(ARCHITECTURES)}; for others try --exporter optimum"
        )
    if strange := sorted(rope_types(config) - set(ROPE_TYPES)):
        raise UnsupportedError(
            f"the ONNX export does not handle rotary scaling of type {strange[0]}; it handles "
            f"{', '.join(ROPE_TYPES)}; for others try --exporter optimum"
        )


def rope_types(config: dict[str, Any]) -> set[str]:
    """Types of rotary scaling, flat or one per kind of layer; older configs call it `type`."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kinds = [value for value in rope.values() if isinstance(value, dict)] or [rope]
    return {str(kind.get("rope_type") or kind.get("type") or "default") for kind in kinds}


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _hqq_nodes(settings: Settings, layers: int) -> list[str]:
    """Matrix products that the builder leaves alone, for HQQ to take."""
    kept = set(sensitive_layers(layers)) if settings.mixed else set()
    names = ("attn/qkv_proj", "attn/v_proj", "mlp/down_proj")
    return [
        f"/model/layers.{layer}/{name}/MatMul"
        for layer in range(layers)
        for name in _LAYER_MATMULS
        if not (layer in kept and name in names)
    ]
