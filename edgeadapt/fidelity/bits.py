"""What an artifact's bits cost, and what it lost besides.

M is the float model that the artifact A means to be, B the plain base, Q the base quantized as A
was: A should be about as far from M as Q is from B. What is more is no loss of bits: a damaged
layer, or an adapter merged onto weights that are not its base's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgeadapt.fidelity.metrics import Estimate, IntArray, TokenDivergence, mean

TOLERATED = 1.5
"""How much more than its base a model may lose to the same bits before it counts as excess. Two
adapters of the 135M model lost 0.63 to 1.17 times as much, in Q8_0, Q6_K, Q4_K_M, Q4_0, Q2_K and
ONNX int4; a layer of zeros made it 29 times in Q8_0 and 3.2 times in Q4_K_M, and a merge onto
another fine-tune of the base 16 times in Q8_0."""


@dataclass(frozen=True)
class BitsLoss:
    """Mean divergences over the same tokens, in nats."""

    kl: Estimate
    """D(B || Q): what the quantization costs the plain base; zero for float weights."""
    excess: Estimate
    """D(M || A) - `TOLERATED` D(B || Q): what the bits do not explain; below zero if they do."""

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {"kl": self.kl.record(), "excess_kl": self.excess.record()}


def bits_loss(
    artifact: TokenDivergence,
    quantized: TokenDivergence | None,
    sequences: IntArray,
    *,
    lossless: bool,
) -> BitsLoss | None:
    """Tell the loss of bits from other losses.

    Args:
        artifact: compared with the model that it means to be.
        quantized: the plain base in the artifact's quantization, compared likewise (and with the
            float base, where that is another); of all the tokens, or of the first ones.
        sequences: number of the sequence that each token belongs to, shape (tokens,).
        lossless: the artifact's weights are floats, so that its bits cost nothing.

    Returns:
        None if it is not known what the bits cost.
    """
    if lossless:
        return BitsLoss(Estimate(0.0, 0.0), mean(artifact.kl, sequences))
    if quantized is None:
        return None
    lost = quantized.kl if quantized.kl_base is None else quantized.kl_base
    part = slice(len(lost))
    excess = artifact.kl[part] - TOLERATED * lost
    return BitsLoss(mean(lost, sequences[part]), mean(excess, sequences[part]))
