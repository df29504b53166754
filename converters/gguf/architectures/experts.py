"""Mixtures of experts: one 3-D tensor per layer and projection, the experts stacked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar

import gguf

from edgeadapt.converters.gguf.architectures.base import Family
from edgeadapt.converters.gguf.mixes import ModelShape
from edgeadapt.converters.gguf.plan import RowRange, TensorPlan
from edgeadapt.errors import CorruptFileError
from edgeadapt.weights import TensorInfo


class ExpertsMixin(Family):
    """Stacks `...experts.N.<projection>.weight` along a new first axis."""

    expert: ClassVar[re.Pattern[str]]
    """Matches an expert's tensor, with groups `layer`, `expert` and `part`."""
    parts: ClassVar[dict[str, str]]
    """The source's name of a projection -> llama.cpp's."""

    @property
    def experts(self) -> int:
        """Number of experts in a layer."""
        key = "num_local_experts" if "num_local_experts" in self.config else "num_experts"
        return self._int(key)

    @property
    def shape(self) -> ModelShape:
        """What the quantization rules ask."""
        return replace(super().shape, experts=self.experts)

    def add_parameters(self, writer: gguf.GGUFWriter) -> None:
        """The family's own, and the numbers of experts."""
        super().add_parameters(writer)
        writer.add_expert_count(self.experts)
        writer.add_expert_used_count(self._int("num_experts_per_tok"))

    def is_expert(self, name: str) -> bool:
        """Whether a tensor belongs to one expert."""
        return self.expert.match(name) is not None

    def plan_experts(self, infos: dict[str, TensorInfo]) -> Iterator[TensorPlan]:
        """One tensor per layer and projection.

        Raises:
            CorruptFileError: an expert is missing, or not of its siblings' shape.
        """
        found: dict[str, dict[int, TensorInfo]] = {}
        for info in infos.values():
            if match := self.expert.match(info.name):
                name = f"blk.{match['layer']}.{self.parts[match['part']]}.weight"
                found.setdefault(name, {})[int(match["expert"])] = info
        for name, by_number in found.items():
            shapes = {info.shape for info in by_number.values()}
            if sorted(by_number) != list(range(self.experts)) or len(shapes) != 1:
                raise CorruptFileError(
                    f"{name} needs {self.experts} experts of one shape, but the checkpoint has "
                    f"{len(by_number)} of shapes {sorted(shapes)}"
                )
            parts = tuple(
                RowRange(by_number[number].name, 0, by_number[number].shape[0])
                for number in range(self.experts)
            )
            yield TensorPlan(name, (self.experts, *next(iter(shapes))), parts)
