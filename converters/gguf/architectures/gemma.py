"""Gemma 2 and 3 (text): norms stored as an offset from one, two kinds of attention layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import gguf
import numpy as np

from edgeadapt.converters.gguf.architectures.base import Family
from edgeadapt.converters.gguf.plan import TensorPlan
from edgeadapt.weights import Float32Array, TensorInfo


class Gemma(Family):
    """What both share."""

    default_head_dim = 256
    rope_types = frozenset({"default", "linear"})
    biases: ClassVar[frozenset[str]] = frozenset()
    prefix_space = False

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__({"tie_word_embeddings": True} | config)  # transformers' default

    def plan_tensor(self, name: str, info: TensorInfo) -> Iterator[TensorPlan]:
        """A norm multiplies by 1 + weight; llama.cpp multiplies by what is in the file."""
        for plan in super().plan_tensor(name, info):
            yield replace(plan, transform=_plus_one) if name.endswith("norm.weight") else plan


class Gemma2(Gemma):
    """Soft caps on attention and logits; every other layer with a sliding window."""

    arch = gguf.MODEL_ARCH.GEMMA2
    classes: ClassVar[tuple[str, ...]] = ("Gemma2ForCausalLM",)
    options: ClassVar[dict[str, str]] = {
        "add_attn_logit_softcapping": "attn_logit_softcapping",
        "add_final_logit_softcapping": "final_logit_softcapping",
        "add_sliding_window": "sliding_window",
    }

    def add_rope(self, writer: gguf.GGUFWriter) -> None:
        """llama.cpp's files leave the base out; it is written where it is not the default."""
        rope = self.rope
        if rope["rope_type"] != "default" or rope["rope_theta"] != self.default_theta:
            super().add_rope(writer)


class Gemma3(Gemma):
    """Norms on q and k; five layers with a sliding window and their own RoPE, then one without."""

    arch = gguf.MODEL_ARCH.GEMMA3
    classes: ClassVar[tuple[str, ...]] = ("Gemma3ForCausalLM",)
    default_theta = 1000000.0
    options: ClassVar[dict[str, str]] = {
        "add_final_logit_softcapping": "final_logit_softcapping",
        "add_sliding_window": "sliding_window",
    }

    def add_rope(self, writer: gguf.GGUFWriter) -> None:
        """The RoPE base of both kinds of layers."""
        super().add_rope(writer)
        writer.add_rope_freq_base_swa(self.local_theta)

    @property
    def local_theta(self) -> float:
        """The RoPE base of the layers with a sliding window."""
        local = self._dict("rope_parameters").get("sliding_attention") or {}
        theta = local.get("rope_theta") or self.config.get("rope_local_base_freq") or 10000.0
        return float(theta)


def _plus_one(rows: Float32Array) -> Float32Array:
    return rows + np.float32(1)
