"""Qwen 2, 2.5 and 3, and Qwen 3 with experts."""

from __future__ import annotations

import re
from typing import ClassVar

import gguf

from edgeadapt.converters.gguf.architectures.base import Family
from edgeadapt.converters.gguf.architectures.experts import ExpertsMixin


class Qwen2(Family):
    """Biases on q, k and v; RoPE on halves, as Hugging Face stores it."""

    arch = gguf.MODEL_ARCH.QWEN2
    classes: ClassVar[tuple[str, ...]] = ("Qwen2ForCausalLM",)


class Qwen3(Family):
    """Norms on q and k in place of the biases."""

    arch = gguf.MODEL_ARCH.QWEN3
    classes: ClassVar[tuple[str, ...]] = ("Qwen3ForCausalLM",)
    default_head_dim = 128


class Qwen3Moe(ExpertsMixin):
    """Qwen 3 with experts in every layer."""

    arch = gguf.MODEL_ARCH.QWEN3MOE
    classes: ClassVar[tuple[str, ...]] = ("Qwen3MoeForCausalLM",)
    options: ClassVar[dict[str, str]] = {"add_expert_feed_forward_length": "moe_intermediate_size"}
    expert = re.compile(
        r"model\.layers\.(?P<layer>\d+)\.mlp\.experts\.(?P<expert>\d+)"
        r"\.(?P<part>gate_proj|up_proj|down_proj)\.weight$"
    )
    parts: ClassVar[dict[str, str]] = {
        "gate_proj": "ffn_gate_exps",
        "up_proj": "ffn_up_exps",
        "down_proj": "ffn_down_exps",
    }
