"""Llama 1 to 3, SmolLM2, Mistral and others of that shape; SmolLM3, Granite and Mixtral."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import gguf
import numpy as np

from edgeadapt.converters.gguf.architectures.base import Family
from edgeadapt.converters.gguf.architectures.experts import ExpertsMixin
from edgeadapt.converters.gguf.mixes import ModelShape
from edgeadapt.converters.gguf.plan import TensorPlan, whole
from edgeadapt.files import read_json
from edgeadapt.weights import Float32Array, TensorInfo


class Llama(Family):
    """RoPE on neighbouring pairs: Hugging Face stores q and k with the pairs' halves apart."""

    arch = gguf.MODEL_ARCH.LLAMA
    classes: ClassVar[tuple[str, ...]] = ("LlamaForCausalLM",)
    default_head_dim: ClassVar[int | None] = 0
    rope_types = Family.rope_types | {"llama3"}
    biases = Family.biases | {"attn_output", "ffn_gate", "ffn_up", "ffn_down"}

    @property
    def shape(self) -> ModelShape:
        """What the quantization rules ask."""
        is_70b = self.arch == gguf.MODEL_ARCH.LLAMA and self.layers == 80
        return replace(super().shape, is_70b=is_70b and self.heads != self.kv_heads)

    def add_parameters(self, writer: gguf.GGUFWriter) -> None:
        """The shared ones, the vocabulary size and the RoPE width."""
        super().add_parameters(writer)
        writer.add_vocab_size(self.vocab_size)
        writer.add_rope_dimension_count(self.head_dim)

    def add_vocabulary(self, writer: gguf.GGUFWriter, folder: Path) -> None:
        """The shared keys, and two that llama.cpp's converter has for this shape only."""
        super().add_vocabulary(writer, folder)
        path = folder / "tokenizer_config.json"
        prefix = read_json(path).get("add_prefix_space") if path.is_file() else None
        if prefix is not None:
            writer.add_add_space_prefix(bool(prefix))
        if self.vocab_size == 49152:  # the vocabulary of Granite and SmolLM
            writer.add_add_bos_token(False)

    def plan_tensor(self, name: str, info: TensorInfo) -> Iterator[TensorPlan]:
        """Interleave the rows of q and k, head by head."""
        plan = whole(name, info.name, info.shape)
        if ".attn_q." in name or ".attn_k." in name:
            plan = replace(plan, transform=self._interleave, row_multiple=self.head_dim)
        yield plan

    def _interleave(self, rows: Float32Array) -> Float32Array:
        """Row i and row i + head_dim/2 of each head become neighbours."""
        heads = rows.reshape(-1, 2, self.head_dim // 2, *rows.shape[1:])
        return heads.swapaxes(1, 2).reshape(rows.shape)

    def extra_tensors(self) -> Iterator[TensorPlan]:
        """Llama 3.1's frequency factors (the formula of transformers' `rope_type: llama3`)."""
        if self.rope["rope_type"] != "llama3":
            return
        factors = _llama3_factors(self.rope, self.head_dim)
        yield TensorPlan("rope_freqs.weight", factors.shape, values=factors)


class Mistral(Llama):
    """Llama with a sliding window, which llama.cpp leaves out (see `limits`)."""

    classes: ClassVar[tuple[str, ...]] = ("MistralForCausalLM",)
    biases = Family.biases


class SmolLM3(Llama):
    """Llama in which every fourth layer goes without RoPE, as llama.cpp takes for granted."""

    arch = gguf.MODEL_ARCH.SMOLLM3
    classes: ClassVar[tuple[str, ...]] = ("SmolLM3ForCausalLM",)
    default_theta = 2000000.0
    default_head_dim = None
    biases = Family.biases


class Granite(Llama):
    """Llama with four constants that scale what flows between the layers."""

    arch = gguf.MODEL_ARCH.GRANITE
    classes: ClassVar[tuple[str, ...]] = ("GraniteForCausalLM",)
    default_head_dim = None
    options: ClassVar[dict[str, str]] = {
        "add_attention_scale": "attention_multiplier",
        "add_embedding_scale": "embedding_multiplier",
        "add_residual_scale": "residual_multiplier",
        "add_logit_scale": "logits_scaling",
    }


class Mixtral(ExpertsMixin, Llama):
    """Mistral with experts in place of the feed-forward layer."""

    classes: ClassVar[tuple[str, ...]] = ("MixtralForCausalLM",)
    default_theta = 1000000.0
    default_head_dim = None
    biases = Family.biases
    expert = re.compile(
        r"model\.layers\.(?P<layer>\d+)\.block_sparse_moe\.experts\.(?P<expert>\d+)"
        r"\.(?P<part>w[123])\.weight$"
    )
    parts: ClassVar[dict[str, str]] = {
        "w1": "ffn_gate_exps",
        "w2": "ffn_down_exps",
        "w3": "ffn_up_exps",
    }


def _llama3_factors(rope: dict[str, float], head_dim: int) -> Float32Array:
    """How much each of the head_dim/2 frequencies is slowed down, shape (head_dim / 2,)."""
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    context, factor = float(rope["original_max_position_embeddings"]), float(rope["factor"])
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = 1.0 / np.power(np.float32(rope["rope_theta"]), exponents)
    factors = []
    for wavelength in (2 * math.pi / float(f) for f in frequencies):
        if wavelength < context / high:
            factors.append(1.0)
        elif wavelength > context / low:
            factors.append(factor)
        else:
            smooth = (context / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, dtype=np.float32)
