"""The matrices of a model, each with the types that it could take and what they would weigh."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from edgeadapt.converters.gguf.layout import Placed, padded
from edgeadapt.converters.gguf.mixes import is_matrix
from edgeadapt.converters.gguf.plan import TensorPlan

T = GGMLQuantizationType

CANDIDATES = (
    T.Q2_K, T.Q3_K, T.IQ3_S, T.IQ4_XS, T.IQ4_NL, T.Q4_0, T.Q4_K, T.Q4_1, T.Q5_0, T.Q5_K, T.Q5_1,
    T.Q6_K, T.Q8_0, T.F16,
)  # fmt: skip
"""Types to choose from. Those left out take longer to compute than the rest together (IQ1, IQ2,
IQ3_XXS), or are for models that were trained in them (TQ)."""


@dataclass(frozen=True)
class Matrix:
    """One tensor of the file that can be quantized."""

    plan: TensorPlan
    types: tuple[GGMLQuantizationType, ...]
    """The candidates whose blocks divide its rows."""

    @property
    def name(self) -> str:
        """llama.cpp's name."""
        return self.plan.name

    @property
    def role(self) -> str:
        """What it does, whichever layer it is in: `ffn_down`, `token_embd`, ..."""
        return self.name.split(".")[-2]

    @property
    def layer(self) -> int | None:
        """Number of its layer."""
        match = re.match(r"blk\.(\d+)\.", self.name)
        return int(match[1]) if match else None

    def nbytes(self, kind: GGMLQuantizationType) -> int:
        """Bytes that it takes in the file as this type, padding included."""
        return padded(Placed(self.plan, kind).nbytes)


def find_matrices(plans: Sequence[TensorPlan]) -> list[Matrix]:
    """The tensors that llama.cpp quantizes, in file order."""
    return [
        Matrix(
            plan,
            tuple(kind for kind in CANDIDATES if plan.columns % GGML_QUANT_SIZES[kind][0] == 0),
        )
        for plan in plans
        if is_matrix(plan.name, plan.shape)
    ]
