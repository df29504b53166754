"""The model families that the writer knows, and what their configs mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeadapt.converters.onnx.stream.rope import ropes
from edgeadapt.errors import CorruptFileError, UnsupportedError

FULL, SLIDING = "full_attention", "sliding_attention"

_GEMMA: dict[str, Any] = {"head_dim": 256, "hidden_activation": "gelu_pytorch_tanh"}

FAMILIES: dict[str, dict[str, Any]] = {
    # What a config.json that does not say it means: the defaults of transformers' config classes.
    "LlamaForCausalLM": {},
    "MistralForCausalLM": {},
    "Qwen2ForCausalLM": {},
    "Qwen3ForCausalLM": {"head_dim": 128},
    "GemmaForCausalLM": _GEMMA,
    "Gemma2ForCausalLM": _GEMMA | {"query_pre_attn_scalar": 256, "sliding_window": 4096},
    "Gemma3ForCausalLM": _GEMMA | {"query_pre_attn_scalar": 256, "rope_theta": 1e6},
    "Phi3ForCausalLM": {"original_max_position_embeddings": 4096},
}
"""Architectures whose graph was compared with torch."""

ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh")

_ROTARY_MULTIPLE = 16
"""Of the values of a head that GroupQueryAttention turns (onnxruntime 1.32, on the CPU)."""


def unsupported(given: Mapping[str, Any]) -> str | None:
    """Why a model's graph cannot be written here; None if it can, or if its config is damaged."""
    architecture = (given.get("architectures") or ["none"])[0]
    if architecture not in FAMILIES:
        return (
            f"the ONNX writer does not know the architecture {architecture}; "
            f"it knows {', '.join(FAMILIES)}"
        )
    config = FAMILIES[architecture] | dict(given)
    if (activation := activation_of(config)) not in ACTIVATIONS:
        return f"the ONNX writer does not know the activation {activation}"
    try:
        size = head_size(config)
        widths = {rope.width for rope in ropes(config, size, (FULL, SLIDING)).values()}
        layer_kinds(config, architecture)
    except UnsupportedError as error:
        return str(error)
    except (CorruptFileError, KeyError, TypeError, ValueError, ZeroDivisionError):
        return None  # it says more when it is read
    if odd := [width for width in widths if width % _ROTARY_MULTIPLE]:
        return (
            f"onnxruntime's attention turns multiples of {_ROTARY_MULTIPLE} values of a head, and "
            f"this model turns {odd[0]} of {size}"
        )
    return None


def layer_kinds(config: Mapping[str, Any], family: str) -> list[str]:
    """The kind of each layer; old configs say it by rules that differ from family to family."""
    count = int(config["num_hidden_layers"])
    if config.get("layer_types"):
        kinds = [str(kind) for kind in config["layer_types"]]
        if len(kinds) != count or not set(kinds) <= {FULL, SLIDING}:
            raise UnsupportedError(f"the ONNX writer does not know the layer types {set(kinds)}")
        return kinds
    window = config.get("sliding_window")
    if family == "Gemma2ForCausalLM":
        sliding = [number % 2 == 0 for number in range(count)]
    elif family == "Gemma3ForCausalLM":
        pattern = int(
            config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6
        )
        sliding = [(number + 1) % pattern != 0 for number in range(count)]
    elif family in ("Qwen2ForCausalLM", "Qwen3ForCausalLM"):
        first = (
            int(config.get("max_window_layers", 28)) if config.get("use_sliding_window") else count
        )
        sliding = [number >= first for number in range(count)]
    else:
        sliding = [family in ("MistralForCausalLM", "Phi3ForCausalLM")] * count
    return [SLIDING if window and slides else FULL for slides in sliding]


def head_size(config: Mapping[str, Any]) -> int:
    """Values of one attention head."""
    return int(
        config.get("head_dim") or int(config["hidden_size"]) // int(config["num_attention_heads"])
    )


def activation_of(config: Mapping[str, Any]) -> str:
    """Gemma's old configs say `gelu` and mean its approximation by tanh."""
    return str(config.get("hidden_activation") or config.get("hidden_act") or "silu")
