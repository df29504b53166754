"""Weights as bitsandbytes' 4-bit formats give them back, in NumPy.

A tensor is taken row after row and cut into blocks of 64 weights. Each block is divided by its
largest magnitude, and each quotient is replaced by the nearest of 16 numbers (NF4: QLoRA, arXiv
2305.14314, appendix E). Double quantization keeps the magnitudes in 8 bits: their mean is taken
off, they are cut into blocks of 256, and each is replaced by the nearest of 256 numbers (arXiv
2110.02861, the signed dynamic type).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeadapt.weights import Float32Array

BLOCK = 64
"""Weights that share a magnitude; bitsandbytes' default, and the only one of its `Linear4bit`."""

_SCALE_BLOCK = 256
_SMALLEST = np.float32(1e-38)
"""Stands for the magnitude of a block of zeros."""

_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
_FP4 = (0.0, 0.0625, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
"""Magnitudes of the 4-bit float, before they are divided by the largest."""


@cache
def codebook(kind: str) -> Float32Array:
    """The numbers that `nf4` or `fp4` can hold, ascending, shape (16,) or (15,): FP4 has two zeros.

    Raises:
        KeyError: the kind is unknown.
    """
    positive = np.array(_FP4, np.float32) / np.float32(12)
    books = {"nf4": np.array(_NF4, np.float32), "fp4": np.unique([-positive, positive])}
    return books[kind]


@cache
def dynamic_codebook() -> Float32Array:
    """The 256 numbers of bitsandbytes' signed dynamic 8-bit type, ascending.

    Seven decades, each with twice as many steps as the one below, and 0 and 1.
    """
    values = [0.0, 1.0]
    for exponent in range(7):
        ends = _linspace(0.1, 1.0, 2**exponent + 1)
        means = (ends[:-1] + ends[1:]) / np.float32(2)
        decade = means * np.float32(10 ** (exponent - 6))
        values += [*decade.tolist(), *(-decade).tolist()]
    return np.array(sorted(values), np.float32)


def _linspace(start: float, end: float, count: int) -> Float32Array:
    """torch.linspace in float32: counted from the nearer end."""
    first, last = np.float32(start), np.float32(end)
    step = (last - first) / np.float32(count - 1)
    index = np.arange(count)
    below, above = first + step * index, last - step * (count - 1 - index)
    return np.where(index < count / 2, below, above).astype(np.float32)


def magnitudes(values: Float32Array) -> Float32Array:
    """Largest magnitude of each block of a flat array; the last block may be short."""
    whole = len(values) // BLOCK * BLOCK
    found = np.abs(values[:whole].reshape(-1, BLOCK)).max(axis=1, initial=0)
    if whole < len(values):
        found = np.append(found, np.abs(values[whole:]).max())
    return np.asarray(found, np.float32)


def eight_bit(scales: Float32Array) -> Float32Array:
    """All magnitudes of a tensor as double quantization gives them back, shape (blocks,)."""
    book = dynamic_codebook()
    offset = np.float32(scales.mean(dtype=np.float64))
    rest = scales - offset
    result = np.empty_like(rest)
    for start in range(0, len(rest), _SCALE_BLOCK):
        part = rest[start : start + _SCALE_BLOCK]
        largest = np.abs(part).max()
        quotients = part / np.maximum(largest, _SMALLEST)
        result[start : start + _SCALE_BLOCK] = book[_nearest(book, quotients)] * largest
    return result + offset


def round_trip(values: Float32Array, kind: str, scales: Float32Array | None = None) -> Float32Array:
    """Quantize and dequantize a flat array that begins at a block's start.

    Args:
        values: the weights, shape (n,).
        kind: `nf4` or `fp4`.
        scales: the blocks' magnitudes to multiply by, where they differ from those divided by.

    Returns:
        float32, shape (n,).
    """
    book = codebook(kind)
    found = magnitudes(values)
    divide_by = np.repeat(np.float32(1) / np.maximum(found, _SMALLEST), BLOCK)[: len(values)]
    multiply_by = np.repeat(found if scales is None else scales, BLOCK)[: len(values)]
    quotients = np.asarray(values * divide_by, np.float32)
    result: Float32Array = book[_nearest(book, quotients)] * multiply_by
    return result


def _nearest(book: Float32Array, values: Float32Array) -> npt.NDArray[Any]:
    """Index of the nearest number of an ascending codebook; the lower one of two as near."""
    return np.searchsorted((book[:-1] + book[1:]) / np.float32(2), values)
