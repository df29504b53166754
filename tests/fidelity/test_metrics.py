"""Figures against plain float64 formulas, and against samples whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeadapt.fidelity.metrics import (
    TokenScores,
    diverge_rows,
    effect,
    kl_divergence,
    log_softmax,
    mean,
    ratio,
    resampled,
    score_rows,
    summarize,
)


def exact_log_softmax(logits: np.ndarray) -> np.ndarray:
    rows = logits.astype(np.float64)
    rows = rows - rows.max(axis=1, keepdims=True)
    return rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))


def exact_kl(reference: np.ndarray, logits: np.ndarray) -> np.ndarray:
    p, q = exact_log_softmax(reference), exact_log_softmax(logits)
    return (np.exp(p) * (p - q)).sum(axis=1)


@given(st.integers(0, 2**32 - 1), st.floats(0.001, 3), st.integers(2, 3000))
def test_divergence_from_float16_is_that_of_float64(seed: int, noise: float, width: int) -> None:
    random = np.random.default_rng(seed)
    reference = random.normal(0, 4, (40, width)).astype(np.float32)
    logits = (reference + random.normal(0, noise, reference.shape)).astype(np.float32)
    wanted = random.integers(0, width, 40)
    stored = log_softmax(reference).astype(np.float16)
    found = diverge_rows(stored, logits, wanted)
    expected = exact_kl(reference, logits)
    np.testing.assert_allclose(found.kl.mean(), expected.mean(), rtol=5e-3, atol=5e-6)
    nll = -exact_log_softmax(logits)[np.arange(40), wanted]
    np.testing.assert_allclose(found.scores.nll, nll, rtol=1e-5, atol=1e-5)
    assert (found.scores.top == logits.argmax(axis=1)).all()


def test_a_model_does_not_diverge_from_itself() -> None:
    logits = np.random.default_rng(0).normal(0, 5, (64, 5000)).astype(np.float32)
    found = kl_divergence(log_softmax(logits).astype(np.float16), log_softmax(logits))
    assert found.max() < 5e-6


def test_what_is_no_number_counts_as_improbable() -> None:
    logits = np.array([[0.0, np.nan, -np.inf, 1.0], [np.nan] * 4], np.float32)
    probabilities = np.exp(log_softmax(logits))
    assert probabilities[0, [1, 2]].max() == 0
    np.testing.assert_allclose(probabilities[1], 0.25)


def test_padded_vocabularies_are_fitted() -> None:
    random = np.random.default_rng(1)
    logits = random.normal(0, 3, (8, 50)).astype(np.float32)
    stored, wanted = log_softmax(logits), random.integers(0, 50, 8)
    padded = np.concatenate([logits, np.full((8, 6), 9, np.float32)], axis=1)
    np.testing.assert_allclose(diverge_rows(stored, padded, wanted).kl, 0, atol=1e-6)
    missing = diverge_rows(stored, logits[:, :45], np.minimum(wanted, 44)).kl
    assert np.isfinite(missing).all() and missing.mean() > 0.01


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0, 2.0])
def test_effect_is_the_share_of_the_way_whatever_noise_is_added(share: float) -> None:
    random = np.random.default_rng(2)
    base = random.normal(0, 2, (300, 400)).astype(np.float32)
    way = random.normal(0, 1, base.shape).astype(np.float32)
    noise = random.normal(0, 1, base.shape)
    model = (base + share * way + noise).astype(np.float32)
    found = effect(log_softmax(base), log_softmax(base + way), log_softmax(model))
    estimate = ratio(found.along, found.square, np.arange(300))
    assert estimate.value == pytest.approx(share, abs=4 * estimate.standard_error)
    assert estimate.standard_error < 0.02


def test_the_base_beside_the_reference_gives_both_divergences() -> None:
    random = np.random.default_rng(3)
    base, reference, model = (random.normal(0, 2, (10, 60)).astype(np.float32) for _ in range(3))
    found = diverge_rows(log_softmax(reference), model, np.arange(10), base=log_softmax(base))
    np.testing.assert_allclose(found.kl, exact_kl(reference, model), rtol=1e-4)
    assert found.kl_base is not None and found.effect is not None
    np.testing.assert_allclose(found.kl_base, exact_kl(base, model), rtol=1e-4)
    assert (found.effect.square > 0).all()


def test_summary_by_hand() -> None:
    reference = np.log(np.array([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.4, 0.3, 0.3]]))
    model = np.log(np.array([[0.4, 0.4, 0.2], [0.2, 0.7, 0.1], [0.4, 0.3, 0.3]]))
    wanted = np.array([0, 1, 2])
    stored = reference.astype(np.float32)
    divergence = diverge_rows(stored, model.astype(np.float32), wanted)
    figures = summarize(score_rows(stored, wanted), divergence, np.array([0, 0, 1]))
    kl = (np.exp(reference) * (reference - model)).sum(axis=1)
    assert figures.mean_kl.value == pytest.approx(kl.mean(), rel=1e-5)
    assert figures.max_kl == pytest.approx(kl.max(), rel=1e-5)
    assert figures.median_kl.value == pytest.approx(np.median(kl), rel=1e-5)
    assert figures.perplexity.value == pytest.approx((0.4 * 0.7 * 0.3) ** (-1 / 3), rel=1e-5)
    expected = ((0.4 * 0.7 * 0.3) / (0.5 * 0.8 * 0.3)) ** (-1 / 3)
    assert figures.perplexity_ratio.value == pytest.approx(expected, rel=1e-5)
    changes = np.array([-0.1, -0.1, 0.0])
    rms = math.sqrt((changes**2).mean())
    assert figures.rms_probability_change.value == pytest.approx(rms, rel=1e-5)
    assert figures.top1.value == 1
    assert figures.tokens == 3


def test_errors_count_sequences_and_not_tokens() -> None:
    """Tokens of a sequence that are all alike tell no more than one of them."""
    random = np.random.default_rng(4)
    once = random.normal(1, 1, 50)
    alike, sequences = np.repeat(once, 20), np.repeat(np.arange(50), 20)
    expected = once.std(ddof=1) / math.sqrt(50)
    assert mean(alike, sequences).standard_error == pytest.approx(expected)
    median = resampled(alike, sequences, lambda values: float(np.median(values)))
    assert median.standard_error == pytest.approx(1.25 * expected, rel=0.5)


def test_errors_are_what_repeated_sampling_gives() -> None:
    random = np.random.default_rng(5)
    drawn, stated = [], []
    for _ in range(300):
        sequences = np.repeat(np.arange(30), random.integers(1, 9, 30))
        below = random.gamma(4, 1, len(sequences))
        above = below * 0.5 + random.normal(0, 1, 30)[sequences]
        estimate = ratio(above, below, sequences)
        drawn.append(estimate.value)
        stated.append(estimate.standard_error)
    assert np.mean(stated) == pytest.approx(np.std(drawn), rel=0.15)


def test_one_sequence_alone_counts_its_tokens() -> None:
    values = np.random.default_rng(6).normal(0, 1, 400)
    estimate = mean(values, np.zeros(400, np.int64))
    assert estimate.standard_error == pytest.approx(values.std(ddof=1) / 20)


def test_nothing_to_count_is_null_in_json() -> None:
    empty = np.empty(0)
    assert mean(empty, np.empty(0, np.int64)).record() == {"value": None, "standard_error": None}
    scores = TokenScores(np.array([1.0]), np.array([3]))
    assert mean(scores.nll, np.zeros(1, np.int64)).record()["standard_error"] is None
