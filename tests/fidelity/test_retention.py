"""Loss of bits and loss of the adapter, told apart on models that are vectors of logits."""

from __future__ import annotations

import numpy as np
import pytest

from edgeadapt.fidelity.metrics import TokenDivergence, diverge_rows, log_softmax, score_rows
from edgeadapt.fidelity.retention import Retention, measure_retention

TOKENS, WIDTH = 600, 300
SEQUENCES = np.arange(TOKENS) // 10
RANDOM = np.random.default_rng(0)
BASE = RANDOM.normal(0, 2, (TOKENS, WIDTH)).astype(np.float32)
CHANGE = RANDOM.normal(0, 0.5, BASE.shape).astype(np.float32)
BITS = RANDOM.normal(0, 0.45, BASE.shape).astype(np.float32)
"""Quantization moves base and merged model alike, and nearly as far as the adapter does."""
MERGED = BASE + CHANGE
# The token that follows is one that the adapter makes likelier.
TARGETS = CHANGE.argmax(axis=1)


def compared(logits: np.ndarray, *, beside_base: bool = True) -> TokenDivergence:
    """Of the first tokens, as many as there are rows."""
    part = slice(len(logits))
    base = log_softmax(BASE[part]) if beside_base else None
    merged = log_softmax(MERGED[part])
    return diverge_rows(merged, logits.astype(np.float32), TARGETS[part], base=base)


def retention_of(
    logits: np.ndarray, quantized: np.ndarray | None, *, lossless: bool = False
) -> Retention:
    return measure_retention(
        score_rows(log_softmax(MERGED), TARGETS),
        compared(BASE, beside_base=False),
        compared(logits),
        None if quantized is None else compared(quantized),
        SEQUENCES,
        lossless=lossless,
    )


def test_the_merged_model_keeps_everything() -> None:
    kept = retention_of(MERGED, None)
    assert kept.adapter == pytest.approx(1, abs=1e-4)
    assert kept.kl.value == pytest.approx(1, abs=1e-4)
    assert kept.gain is not None and kept.gain.value == pytest.approx(1, abs=1e-4)
    assert kept.bits_kl is None and kept.beyond_bits is None


def test_lost_bits_are_not_a_lost_adapter() -> None:
    kept = retention_of(MERGED + BITS, BASE + BITS)
    assert kept.kl.value < 0.4  # as if most of the adapter were gone
    assert kept.effect_quantized is not None and kept.beyond_bits is not None
    assert kept.effect_quantized.value == pytest.approx(1, abs=0.02)
    assert kept.adapter is not None and kept.adapter > 0.95
    assert kept.gain_quantized is not None
    assert kept.gain_quantized.value == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("share", [0.0, 0.5, 2.0])
def test_a_lost_or_doubled_adapter_is_told_under_lost_bits(share: float) -> None:
    kept = retention_of(BASE + share * CHANGE + BITS, BASE + BITS)
    assert kept.effect_quantized is not None and kept.adapter is not None
    assert kept.effect_quantized.value == pytest.approx(share, abs=0.05)
    assert kept.adapter < 0.8


@pytest.mark.parametrize(("share", "sound"), [(0.0, False), (0.8, True), (1.2, True), (2.0, False)])
def test_under_bits_that_cost_more_only_clear_losses_count(share: float, sound: bool) -> None:
    bits = 3 * BITS
    kept = retention_of(BASE + share * CHANGE + bits, BASE + bits)
    assert kept.bits_kl is not None and kept.bits_kl.value > kept.adapter_kl.value
    assert kept.adapter is not None and (kept.adapter > 0.95) == sound


def test_another_base_is_told_by_what_the_bits_do_not_explain() -> None:
    """Its weights differ a little everywhere: the adapter's effect is there, with noise."""
    other = RANDOM.normal(0, 0.25, BASE.shape)
    found = retention_of(MERGED + other, None, lossless=True)
    assert found.effect.value == pytest.approx(1, abs=0.02)
    assert found.adapter is not None and found.adapter < 0.6


def test_an_adapter_that_changes_nothing_is_not_judged() -> None:
    base = compared(MERGED, beside_base=False)
    merged = score_rows(log_softmax(MERGED), TARGETS)
    kept = measure_retention(merged, base, compared(MERGED), None, SEQUENCES)
    assert kept.adapter is None
    assert kept.gain is None
    record = kept.record()
    assert record["adapter"] is None and record["log_perplexity_gain"]["float_base"] is None


def test_the_quantized_base_may_be_of_the_beginning_alone() -> None:
    all_of_it = retention_of(MERGED + BITS, BASE + BITS)
    kept = retention_of(MERGED + BITS, (BASE + BITS)[: TOKENS // 2])
    assert kept.kl == all_of_it.kl and kept.effect == all_of_it.effect
    for found, expected in (
        (kept.bits_kl, all_of_it.bits_kl),
        (kept.effect_quantized, all_of_it.effect_quantized),
        (kept.gain_quantized, all_of_it.gain_quantized),
        (kept.beyond_bits, all_of_it.beyond_bits),
    ):
        assert found is not None and expected is not None
        assert found != expected  # other tokens
        assert found.value == pytest.approx(expected.value, abs=0.1)
