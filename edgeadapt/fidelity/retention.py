"""How much of what the adapter changed is still in an artifact.

Two losses look alike in a divergence: bits that quantization took from every weight, and a part of
the adapter that did not arrive. They are told apart by the plain base, quantized the same way and
run on the same engine: what it lost, it lost to the bits.

M is the merged float model, B the float base, A the artifact, Q the quantized base:

- `kl`: 1 - D(M || A) / D(M || B), and against the quantized base 1 - D(M || A) / D(M || Q).
- `gain`: share of the gain in log perplexity from B to M that is left: from B to A, or from Q to A.
- `effect`: how far A went from B to M (see `TokenEffect`), or from Q. It is 1 whatever the bits
  cost, 0 for an adapter that was dropped, and more than 1 for one that counts too much.
- `beyond_bits`: 1 - (D(M || A) - s D(B || Q)) / D(M || B): what is lost that the bits do not
  explain, where s allows an adapted model to suffer somewhat more from rounding than its base.
- `adapter`: what the gate judges: the smallest of the effect; of 1 minus twice what the effect is
  more than 1, since probabilities saturate and twice the adapter has not twice the effect; and of
  1 minus three times what is lost beyond the bits, where a sound artifact loses nothing. Where the
  bits cost more than the adapter changes, only an effect below 0.5 or above 1.5 counts as lost.

Measured on the demo's adapter in Q8_0, halving alpha takes `kl` from 0.99 to 0.88, while sound
Q4_K_M files of it and of a weaker one have 0.94 and 0.37. It takes `effect` from 1.00 to 0.76,
where those have 0.98 and 0.92; doubling alpha takes it to 1.13.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from edgeadapt.fidelity.metrics import (
    Estimate,
    IntArray,
    TokenDivergence,
    TokenScores,
    mean,
    ratio,
)

SENSITIVITY = 1.25
"""How much more than its base an adapted model may lose to the same bits; at most 1.17 measured."""
_CLEAR = (0.5, 1.5)
"""Effects between these are not told from 1 under bits that cost more than the adapter changes."""
LEAST_EFFECT = 0.002
"""D(M || B) in nats below which an adapter changes too little for shares of it to be told."""


@dataclass(frozen=True)
class Retention:
    """Shares of the adapter's effect, each against the float and against the quantized base."""

    adapter_kl: Estimate
    """D(M || B): all that the adapter changes, in nats."""
    bits_kl: Estimate | None
    """D(B || Q): what the same quantization costs the plain base, in nats."""
    kl: Estimate
    kl_quantized: Estimate | None
    gain: Estimate | None
    """None if the adapter improves nothing on this text."""
    gain_quantized: Estimate | None
    effect: Estimate
    effect_quantized: Estimate | None
    beyond_bits: Estimate | None

    @property
    def adapter(self) -> float | None:
        """What the gate judges; None if the adapter changes too little on this text."""
        if not self.adapter_kl.value >= LEAST_EFFECT:
            return None
        effect = (self.effect_quantized or self.effect).value
        kept = min(effect, 1 - 2 * (effect - 1))
        if self._drowned and _CLEAR[0] <= effect <= _CLEAR[1]:
            kept = 1.0
        if self.beyond_bits is None:
            return kept
        return min(kept, 1 - 3 * (1 - self.beyond_bits.value))

    @property
    def _drowned(self) -> bool:
        """The bits cost more than the adapter changes."""
        return self.bits_kl is not None and self.bits_kl.value > self.adapter_kl.value

    def record(self) -> dict[str, Any]:
        """As JSON."""

        def both(float_base: Estimate | None, quantized: Estimate | None) -> dict[str, Any]:
            return {
                "float_base": float_base and float_base.record(),
                "quantized_base": quantized and quantized.record(),
            }

        return {
            "adapter": self.adapter,
            "kl": both(self.kl, self.kl_quantized),
            "log_perplexity_gain": both(self.gain, self.gain_quantized),
            "effect": both(self.effect, self.effect_quantized),
            "beyond_bits": self.beyond_bits and self.beyond_bits.record(),
            "adapter_kl": self.adapter_kl.record(),
            "bits_kl": self.bits_kl and self.bits_kl.record(),
        }


def measure_retention(
    merged: TokenScores,
    base: TokenDivergence,
    artifact: TokenDivergence,
    quantized: TokenDivergence | None,
    sequences: IntArray,
    *,
    lossless: bool = False,
) -> Retention:
    """All shares, with their standard errors.

    Args:
        merged: what the merged model says of the tokens.
        base: the plain base, compared with the merged model.
        artifact: compared with the merged model, the base beside it.
        quantized: the plain base in the artifact's quantization, compared likewise; of all the
            tokens, or of the first ones.
        sequences: number of the sequence that each token belongs to, shape (tokens,).
        lossless: the artifact's weights are floats, so that its bits cost nothing.
    """
    assert artifact.effect is not None
    square = artifact.effect.square
    improved = base.scores.nll - merged.nll
    gain = float(improved.sum()) > 0
    retention = Retention(
        adapter_kl=mean(base.kl, sequences),
        bits_kl=None,
        kl=_remainder(ratio(artifact.kl, base.kl, sequences)),
        kl_quantized=None,
        gain=ratio(base.scores.nll - artifact.scores.nll, improved, sequences) if gain else None,
        gain_quantized=None,
        effect=ratio(artifact.effect.along, square, sequences),
        effect_quantized=None,
        beyond_bits=_remainder(ratio(artifact.kl, base.kl, sequences)) if lossless else None,
    )
    if quantized is None:
        return retention
    assert quantized.effect is not None and quantized.kl_base is not None
    part = slice(len(quantized.kl))
    sequences = sequences[part]
    along = artifact.effect.along[part] - quantized.effect.along
    saved = quantized.scores.nll - artifact.scores.nll[part]
    lost = artifact.kl[part] - SENSITIVITY * quantized.kl_base
    gain = float(improved[part].sum()) > 0
    return replace(
        retention,
        bits_kl=mean(quantized.kl_base, sequences),
        kl_quantized=_remainder(ratio(artifact.kl[part], quantized.kl, sequences)),
        gain_quantized=ratio(saved, improved[part], sequences) if gain else None,
        effect_quantized=ratio(along, square[part], sequences),
        beyond_bits=_remainder(ratio(lost, base.kl[part], sequences)),
    )


def _remainder(lost: Estimate) -> Estimate:
    return Estimate(1 - lost.value, lost.standard_error)
