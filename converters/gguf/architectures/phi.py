"""Phi-3 and Phi-4: q, k and v in one tensor, gate and up in another, as llama.cpp has them too."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import gguf
import numpy as np

from edgeadapt.converters.gguf.architectures.base import Family
from edgeadapt.converters.gguf.plan import TensorPlan
from edgeadapt.errors import CorruptFileError


class Phi3(Family):
    """RoPE on part of a head; for long contexts two tables of frequency factors."""

    arch = gguf.MODEL_ARCH.PHI3
    classes: ClassVar[tuple[str, ...]] = ("Phi3ForCausalLM",)
    rope_types = frozenset({"default", "longrope", "su"})
    biases: ClassVar[frozenset[str]] = frozenset()

    @property
    def rope(self) -> dict[str, Any]:
        """With the two values that older configs have outside of it."""
        outer = {
            "partial_rotary_factor": self.config.get("partial_rotary_factor") or 1.0,
            "original_max_position_embeddings": self.config.get("original_max_position_embeddings")
            or 4096,
        }
        return outer | super().rope

    @property
    def rope_width(self) -> int:
        """How many values of a head RoPE turns."""
        return int(self.rope["partial_rotary_factor"] * self.hidden) // self.heads

    def add_rope(self, writer: gguf.GGUFWriter) -> None:
        """Base and width, the context first trained for, and the sliding window."""
        super().add_rope(writer)
        rope = self.rope
        writer.add_rope_dimension_count(self.rope_width)
        writer.add_rope_scaling_orig_ctx_len(int(rope["original_max_position_embeddings"]))
        # Zero tells llama.cpp that this is a Phi-4.
        writer.add_sliding_window(self.config.get("sliding_window") or 0)
        if rope.get("long_factor"):
            writer.add_rope_scaling_attn_factors(self._attention_factor())

    def extra_tensors(self) -> Iterator[TensorPlan]:
        """The factors of each frequency, for short and for long contexts."""
        rope = self.rope
        if not rope.get("long_factor"):
            return
        for name in ("long", "short"):
            values = np.array(rope.get(f"{name}_factor"), dtype=np.float32)
            if values.shape != (self.rope_width // 2,):
                raise CorruptFileError(
                    f"config.json has {name}_factor of shape {values.shape}, expected "
                    f"({self.rope_width // 2},)"
                )
            yield TensorPlan(f"rope_factors_{name}.weight", values.shape, values=values)

    def _attention_factor(self) -> float:
        """LongRoPE's scale of attention (https://arxiv.org/abs/2402.13753)."""
        original = int(self.rope["original_max_position_embeddings"])
        scale = self._int("max_position_embeddings") / original
        if scale <= 1.0:
            return 1.0
        return math.sqrt(1 + math.log(scale) / math.log(original))
