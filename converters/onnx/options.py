"""What the builder is asked for, quantization by quantization, and the models it is asked for.

Option names are those of `python -m onnxruntime_genai.models.builder --help` (0.18). Whatever
changes the numbers is written out here although it is the builder's default, so that an artifact
says what was done to it and a new builder does not change it silently.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from edgeadapt.errors import UnsupportedError

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
    "SmolLM3ForCausalLM",
)
"""Those whose float32 graph was compared with torch; the builder gets some others wrong (OLMo)."""

ROPE_TYPES = ("default", "llama3")
"""Rotary scalings for which the graph equals torch; with linear and yarn it is off by 5e-3."""

Options = dict[str, str]

_ALWAYS: Options = {
    "hf_token": "false",
    "hf_remote": "false",
    # Plain onnxruntime refuses the empty past that a window-sized cache starts with.
    "windowed_kv_cache": "false",
}

_BLOCK = 32
"""Weights of a row that share a scale."""

_BLOCKS: Options = {
    "algo_config": "rtn",
    "block_size": str(_BLOCK),
    # 4: activations are rounded to int8 in blocks, which is what the fast CPU kernels take.
    "accuracy_level": "4",
}

_BY_QUANTIZATION: dict[str, Options] = {
    "fp32": {},
    # 8-bit tables cannot be gathered from, so a tied embedding stays float32 beside its head.
    "int8": _BLOCKS | {"is_symmetric": "true", "shared_embeddings": "false"},
    # The head, and the layers that llama.cpp's mixed types also favour, in 8 bits; the rest in 4
    # with zero points. On the 135M model: 117 MB and a KL divergence from float32 of 0.23, against
    # 0.46 in 90 MB with 4 bits throughout (0.23 as well with k_quant, which takes twice as long).
    "int4": _BLOCKS
    | {
        "is_symmetric": "false",
        "matmul_mixed_precision": "last_matmul:int8,mixed_layers:int8",
    },
}

QUANTIZATIONS = tuple(_BY_QUANTIZATION)


def builder_options(
    quantization: str, config: dict[str, Any], widths: Collection[int] = ()
) -> Options:
    """The builder's extra options for one quantization of one model.

    Args:
        quantization: one of `QUANTIZATIONS`.
        config: the model's config.json.
        widths: lengths of the rows of its matrices.

    Raises:
        UnsupportedError: the architecture or its rotary scaling is not among those compared.
    """
    names = config.get("architectures") or ["none"]
    if names[0] not in ARCHITECTURES:
        raise UnsupportedError(
            f"the ONNX export does not handle the architecture {names[0]}; "
            f"it handles {', '.join(ARCHITECTURES)}"
        )
    if strange := sorted(_rope_types(config) - set(ROPE_TYPES)):
        raise UnsupportedError(
            f"the ONNX export does not handle rotary scaling of type {strange[0]}; "
            f"it handles {', '.join(ROPE_TYPES)}"
        )
    tied = "true" if config.get("tie_word_embeddings") else "false"
    options = _ALWAYS | {"shared_embeddings": tied} | _BY_QUANTIZATION[quantization]
    # The builder packs zero points two to a byte and fails on rows with an odd number of them.
    if "is_symmetric" in options and any(-(-width // _BLOCK) % 2 for width in widths):
        options["is_symmetric"] = "true"
    return options


def _rope_types(config: dict[str, Any]) -> set[str]:
    """Types of rotary scaling, flat or one per kind of layer; older configs call it `type`."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kinds = [value for value in rope.values() if isinstance(value, dict)] or [rope]
    return {str(kind.get("rope_type") or kind.get("type") or "default") for kind in kinds}
