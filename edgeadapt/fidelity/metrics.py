"""From logits to figures: divergence, perplexity and agreement, each with its standard error.

The definitions are those of llama.cpp's `llama-perplexity --kl-divergence`, so that figures can be
compared: D(reference || model) in nats over the whole vocabulary, the change of the probability
of the token that really follows, and how often both models' most probable tokens agree.

Tokens of one sequence resemble each other, so standard errors count sequences, not tokens
(llama.cpp counts tokens, and so states smaller ones).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeadapt.jobs import available_threads

Float16Array = npt.NDArray[np.float16]
Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

LOWEST = -65504.0
"""Stands for minus infinity: float16's lowest number."""
_RESAMPLES = 200
_ROWS = 32
"""Rows worked on at once: at a vocabulary of 50k they fit a CPU's cache."""


@dataclass(frozen=True)
class Estimate:
    """A figure, and the standard error with which these tokens give it."""

    value: float
    standard_error: float

    def record(self) -> dict[str, float | None]:
        """As JSON, which has no word for what is not a number."""
        return {name: None if math.isnan(value) else value for name, value in vars(self).items()}


@dataclass(frozen=True)
class TokenScores:
    """What a model says of each scored token; every array has the shape (tokens,)."""

    nll: Float64Array
    """-log of the probability that it gives to the token, in nats."""
    top: IntArray
    """The token that it thinks most probable."""


@dataclass(frozen=True)
class TokenEffect:
    """How much of the way from base to reference a model went; arrays of shape (tokens,).

    The log probabilities of base, reference and model, each centred by its own mean, give two
    vectors over the vocabulary: base to reference, and base to model. `along` is their inner
    product and `square` the first one's with itself, both weighted by the average of base's and
    reference's probabilities. sum(along) / sum(square) is 1 for the reference and 0 for the base,
    whatever is added to either that has nothing to do with the way, as rounding has not.
    """

    along: Float64Array
    square: Float64Array


@dataclass(frozen=True)
class TokenDivergence:
    """How a model differs from a reference at each scored token; arrays of shape (tokens,)."""

    scores: TokenScores
    """The model's own."""
    kl: Float64Array
    """D(reference || model), in nats."""
    kl_base: Float64Array | None = None
    """D(base || model), in nats; if there is a base beside the reference."""
    effect: TokenEffect | None = None
    """If there is a base beside the reference."""


def log_softmax(logits: Float32Array) -> Float32Array:
    """Log probabilities of each row, shape (rows, vocabulary), in nats.

    What is not a number counts as the least probable; a row without a number as a uniform guess.
    """
    rows = np.asarray(logits, np.float32)
    if not np.isfinite(rows).all():
        rows = np.nan_to_num(rows, nan=LOWEST, posinf=-LOWEST, neginf=LOWEST)
    shifted = rows - rows.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    result: Float32Array = np.maximum(shifted, np.float32(LOWEST), out=shifted)
    return result


def kl_divergence(reference: Float16Array | Float32Array, log_probs: Float32Array) -> Float64Array:
    """D(reference || model) of each row, in nats, shape (rows,).

    Args:
        reference: log probabilities, shape (rows, vocabulary); those rounded to float16 are
            normalised again, which leaves only the square of the rounding.
        log_probs: the model's, of the same shape, normalised.
    """
    expected = np.asarray(reference, np.float32)
    weights = np.exp(expected)
    total = weights.sum(axis=1).astype(np.float64)
    difference = expected - log_probs
    difference *= weights
    result: Float64Array = difference.sum(axis=1).astype(np.float64) / total - np.log(total)
    return np.maximum(result, 0.0)


def score_rows(log_probs: Float32Array, targets: npt.NDArray[Any]) -> TokenScores:
    """What log probabilities, shape (tokens, vocabulary), say of the tokens that follow."""
    nll = -log_probs[np.arange(len(targets)), targets].astype(np.float64)
    return TokenScores(nll, log_probs.argmax(axis=1).astype(np.int64))


def effect(
    base: Float16Array | Float32Array,
    reference: Float16Array | Float32Array,
    log_probs: Float32Array,
) -> TokenEffect:
    """See `TokenEffect`; all three are log probabilities of shape (rows, vocabulary)."""
    start, end = np.asarray(base, np.float32), np.asarray(reference, np.float32)
    weights = np.exp(start)
    weights += np.exp(end)
    weights /= weights.sum(axis=1, keepdims=True)
    way = end - start
    way -= (weights * way).sum(axis=1, keepdims=True)
    weights *= way  # centring one of two factors is enough
    along = (weights * (log_probs - start)).sum(axis=1)
    square = (weights * way).sum(axis=1)
    return TokenEffect(along.astype(np.float64), square.astype(np.float64))


def diverge_rows(
    reference: Float16Array | Float32Array,
    logits: Float16Array | Float32Array,
    targets: npt.NDArray[Any],
    *,
    base: Float16Array | Float32Array | None = None,
) -> TokenDivergence:
    """Compare a model's logits with a reference, a few rows at a time on each core.

    Args:
        reference: its log probabilities, shape (tokens, vocabulary); may be memory-mapped.
        logits: the model's, shape (tokens, its vocabulary). Engines and converters pad the
            vocabulary: entries that only the model has are left out, and those that only the
            reference has count as the row's least probable.
        targets: the tokens that follow, shape (tokens,).
        base: the plain base's log probabilities, to tell how much of the adapter's effect is
            there. An adapter may add tokens: those are the base's least probable.
    """
    width = reference.shape[1]

    def compared(start: int) -> TokenDivergence:
        part = slice(start, start + _ROWS)
        expected = np.asarray(reference[part], np.float32)
        log_probs = log_softmax(_fit(np.asarray(logits[part], np.float32), width))
        scores = score_rows(log_probs, targets[part])
        divergence = TokenDivergence(scores, kl_divergence(expected, log_probs))
        if base is not None:
            plain = _fit(np.asarray(base[part], np.float32), width)
            divergence = replace(
                divergence,
                kl_base=kl_divergence(plain, log_probs),
                effect=effect(plain, expected, log_probs),
            )
        return divergence

    with ThreadPoolExecutor(available_threads()) as pool:  # NumPy lets go of the interpreter
        return join(list(pool.map(compared, range(0, len(targets), _ROWS))))


def join(parts: Sequence[TokenDivergence]) -> TokenDivergence:
    """Divergences of several batches as one."""
    effects = [part.effect for part in parts if part.effect is not None]
    based = [part.kl_base for part in parts if part.kl_base is not None]
    top = [part.scores.top for part in parts]
    return TokenDivergence(
        TokenScores(
            _concatenate([part.scores.nll for part in parts]),
            np.concatenate(top) if top else np.empty(0, np.int64),
        ),
        _concatenate([part.kl for part in parts]),
        _concatenate(based) if based else None,
        TokenEffect(
            _concatenate([one.along for one in effects]),
            _concatenate([one.square for one in effects]),
        )
        if effects
        else None,
    )


def _concatenate(parts: list[Float64Array]) -> Float64Array:
    return np.concatenate(parts) if parts else np.empty(0, np.float64)


def _fit(logits: Float32Array, width: int) -> Float32Array:
    """Logits with as many columns as the reference."""
    missing = width - logits.shape[1]
    if missing <= 0:
        return logits[:, :width]
    lowest = np.repeat(logits.min(axis=1, keepdims=True), missing, axis=1)
    return np.concatenate([logits, lowest], axis=1)


@dataclass(frozen=True)
class Fidelity:
    """An artifact against its reference, over all scored tokens."""

    tokens: int
    perplexity: Estimate
    reference_perplexity: Estimate
    perplexity_ratio: Estimate
    """The artifact's perplexity over the reference's; its error is that of the paired difference
    of log likelihoods, much smaller than either perplexity's."""
    mean_kl: Estimate
    median_kl: Estimate
    p99_kl: Estimate
    max_kl: float
    top1: Estimate
    """Share of tokens at which both models think the same token most probable."""
    rms_probability_change: Estimate
    """Root of the mean squared change of the probability given to the token that follows."""

    def record(self) -> dict[str, Any]:
        """As JSON; divergences in nats."""
        return {
            name: value.record() if isinstance(value, Estimate) else value
            for name, value in vars(self).items()
        }


def summarize(reference: TokenScores, model: TokenDivergence, sequences: IntArray) -> Fidelity:
    """All figures of a comparison.

    Args:
        reference: what the reference says of the tokens.
        model: what the artifact says of the same tokens.
        sequences: number of the sequence that each token belongs to, shape (tokens,).
    """
    kl, nll = model.kl, model.scores.nll
    change = np.exp(-nll) - np.exp(-reference.nll)
    square = mean(change**2, sequences)
    rms = math.sqrt(square.value)
    return Fidelity(
        tokens=len(nll),
        perplexity=exponential(mean(nll, sequences)),
        reference_perplexity=exponential(mean(reference.nll, sequences)),
        perplexity_ratio=exponential(mean(nll - reference.nll, sequences)),
        mean_kl=mean(kl, sequences),
        median_kl=resampled(kl, sequences, lambda values: float(np.median(values))),
        p99_kl=resampled(kl, sequences, lambda values: float(np.quantile(values, 0.99))),
        max_kl=float(kl.max()) if len(kl) else math.nan,
        top1=mean((model.scores.top == reference.top).astype(np.float64), sequences),
        rms_probability_change=Estimate(rms, square.standard_error / (2 * rms) if rms else 0.0),
    )


def mean(values: Float64Array, sequences: IntArray) -> Estimate:
    """Mean over tokens; its error over sequences."""
    return ratio(values, np.ones_like(values), sequences)


def ratio(above: Float64Array, below: Float64Array, sequences: IntArray) -> Estimate:
    """sum(above) / sum(below) and its standard error by linearisation over sequences.

    The ratio estimator of cluster sampling: W. G. Cochran, Sampling Techniques (1977), chapter 6.
    Where there is one sequence alone, each token counts as one. NaN without tokens.
    """
    if not len(above):
        return Estimate(math.nan, math.nan)
    total = float(below.sum())
    if total == 0:
        return Estimate(math.nan, math.nan)
    value = float(above.sum()) / total
    residuals = _per_sequence(above - value * below, sequences)
    count = len(residuals)
    if count < 2:
        return Estimate(value, math.nan)
    error = math.sqrt(float((residuals**2).sum()) * count / (count - 1)) / abs(total)
    return Estimate(value, error)


def exponential(estimate: Estimate) -> Estimate:
    """exp of an estimate: a mean of log likelihoods as a perplexity."""
    value = math.exp(min(estimate.value, 700.0))
    return Estimate(value, value * estimate.standard_error)


def resampled(
    values: Float64Array, sequences: IntArray, statistic: Callable[[Float64Array], float]
) -> Estimate:
    """A statistic that is no mean, its error from resampling whole sequences (the bootstrap)."""
    if not len(values):
        return Estimate(math.nan, math.nan)
    groups = _groups(sequences)
    order = np.argsort(groups, kind="stable")
    parts = np.split(values[order], np.cumsum(np.bincount(groups))[:-1])
    random = np.random.default_rng(0)
    drawn = [
        statistic(np.concatenate([parts[i] for i in random.integers(0, len(parts), len(parts))]))
        for _ in range(_RESAMPLES)
    ]
    return Estimate(statistic(values), float(np.std(drawn, ddof=1)))


def _per_sequence(values: Float64Array, sequences: IntArray) -> Float64Array:
    """Sums over the tokens of each sequence that has any."""
    result: Float64Array = np.bincount(_groups(sequences), values).astype(np.float64)
    return result


def _groups(sequences: IntArray) -> IntArray:
    """Sequences numbered without gaps; each token for itself if there is only one sequence."""
    kept, groups = np.unique(sequences, return_inverse=True)
    return np.arange(len(sequences)) if len(kept) < 2 else groups
