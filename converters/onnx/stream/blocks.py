"""Weights in blocks of a row that share a scale, as `MatMulNBits` reads them.

The numbers are those of onnxruntime's quantizers (1.32, `quantization/matmul_nbits_quantizer.py`),
bit for bit, but for blocks whose values are all of one sign: a zero point is one of the codes, so
that the range of a block must include zero, and theirs need not (3 and 4 read as 1). A weight w is
stored as q = round(w / scale + zero), and read as (q - zero) * scale.
The layout is that of https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md:
rows are outputs; two 4-bit values to a byte, the first in the low half; the same for zero points,
each row of which begins with a new byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgeadapt.weights import Float32Array

Bytes = npt.NDArray[np.uint8]
Algorithm = Literal["rtn", "k_quant"]

ALGORITHMS: tuple[Algorithm, ...] = ("rtn", "k_quant")
BLOCK_SIZES = (16, 32, 64, 128, 256)

_STEPS = 20
"""Scales that k_quant tries, besides the one that spans the block."""


@dataclass(frozen=True)
class BlockScheme:
    """How a matrix is quantized."""

    bits: Literal[4, 8]
    block: int = 32
    symmetric: bool = False
    """The zero is the middle value, and not stored; `k_quant` stores one all the same."""
    algorithm: Algorithm = "rtn"

    @property
    def has_zeros(self) -> bool:
        """Whether zero points are stored."""
        return not self.symmetric or self.algorithm == "k_quant"

    def blocks(self, columns: int) -> int:
        """Blocks in a row; the last one is filled up with zeros."""
        return -(-columns // self.block)

    def shapes(self, rows: int, columns: int) -> tuple[tuple[int, ...], ...]:
        """Shapes of the quantized values, the scales and the packed zero points of a matrix."""
        count = self.blocks(columns)
        values = (rows, count, self.block * self.bits // 8)
        return values, (rows, count), (rows, -(-count * self.bits // 8))


def quantize(rows: Float32Array, scheme: BlockScheme) -> tuple[Bytes, Float32Array, Bytes]:
    """Quantize rows, shape (rows, columns), to what `BlockScheme.shapes` describes.

    Zero points are returned for a symmetric scheme as well, all of them the middle value.
    """
    count, columns = rows.shape
    blocks = scheme.blocks(columns)
    padded = rows
    if columns % scheme.block:
        padded = np.zeros((count, blocks * scheme.block), dtype=np.float32)
        padded[:, :columns] = rows
    data = padded.reshape(-1, scheme.block)
    scale, zero = _k_quant(data, scheme) if scheme.algorithm == "k_quant" else _rtn(data, scheme)
    # float64 as in onnxruntime: float32 would round some halves the other way
    values = data / scale
    values += zero
    np.round(values, out=values)
    np.clip(values, 0, 2**scheme.bits - 1, out=values)
    return (
        _packed(values.astype(np.uint8), scheme.bits).reshape(count, blocks, -1),
        scale.astype(np.float32).reshape(count, blocks),
        _packed(zero.astype(np.uint8).reshape(count, blocks), scheme.bits),
    )


def dequantize(
    values: Bytes, scales: Float32Array, zeros: Bytes, columns: int, bits: int
) -> Float32Array:
    """Back to float32, shape (rows, columns): what a kernel multiplies by."""
    rows, blocks, _ = values.shape
    codes = _unpacked(values.reshape(rows * blocks, -1), bits).reshape(rows, blocks, -1)
    offsets = _unpacked(zeros, bits)[:, :blocks]
    result = (codes.astype(np.float32) - offsets[..., None]) * scales[..., None]
    return result.reshape(rows, -1)[:, :columns]


def _rtn(data: Float32Array, scheme: BlockScheme) -> tuple[npt.NDArray[np.float64], Bytes]:
    """Scale and zero point of each block, from its range; shape (blocks, 1)."""
    low, high = _range(data)
    levels = 2**scheme.bits - 1
    span = np.maximum(np.abs(low), np.abs(high)) * np.float32(2) if scheme.symmetric else high - low
    scale = np.where(span > 0, span.astype(np.float64) / levels, 1.0)
    if scheme.symmetric:
        return scale, np.full(scale.shape, 2 ** (scheme.bits - 1), dtype=np.uint8)
    zero = np.clip(np.round(-low / scale), 0, levels)
    return scale, zero.astype(np.uint8)


def _k_quant(data: Float32Array, scheme: BlockScheme) -> tuple[npt.NDArray[np.float64], Bytes]:
    """Scale and zero point that make the weighted squared error small; shape (blocks, 1).

    The method of llama.cpp's k-quants (`make_qkx2_quants`): from several scales the codes, and from
    the codes the scale and offset by least squares, large values weighing more. As in onnxruntime,
    and unlike in llama.cpp, each trial starts from the best offset so far. As in llama.cpp, and
    unlike in onnxruntime, no offset is taken that no zero point can express.
    """
    levels = np.float32(2**scheme.bits - 1)
    offset, high = _range(data)
    weight = np.sqrt(_sum(data**2) / scheme.block) + np.abs(data)
    total, first = _sum(weight), _sum(weight * data)
    codes = _codes(data, offset, high, levels, levels)
    scale = 1 / _factor(offset, high, levels)
    best = _sum(weight * np.square(scale * codes + offset - data))
    for step in range(_STEPS):
        codes = _codes(data, offset, high, np.float32(-1 + 0.1 * step + int(levels)), levels)
        weighted = weight * codes
        ones, twos, mixed = _sum(weighted), _sum(weighted * codes), _sum(weighted * data)
        with np.errstate(divide="ignore", invalid="ignore"):  # all codes alike: not an improvement
            determinant = total * twos - ones**2
            new_scale = (total * mixed - first * ones) / determinant
            new_offset = (twos * first - ones * mixed) / determinant
            error = _sum(weight * np.square(new_scale * codes + new_offset - data))
            zero = np.round(-new_offset / new_scale)
        better = (error < best) & (zero >= 0) & (zero <= levels)
        best = np.where(better, error, best)
        scale = np.where(better, new_scale, scale)
        offset = np.where(better, new_offset, offset)
    zero = np.clip(np.round(-offset / scale), 0, levels)
    return scale.astype(np.float64), zero.astype(np.uint8)


def _range(data: Float32Array) -> tuple[Float32Array, Float32Array]:
    """Least and greatest value of each block, or zero; shape (blocks, 1)."""
    zero = np.float32(0)
    low: Float32Array = data.min(axis=1, keepdims=True, initial=zero)
    high: Float32Array = data.max(axis=1, keepdims=True, initial=zero)
    return low, high


def _factor(low: Float32Array, high: Float32Array, width: np.float32) -> Float32Array:
    """What spreads a block over `width` levels; 1 where all its values are alike."""
    flat = low == high
    one = np.ones_like(low)
    return np.where(flat, one, width / np.where(flat, one, high - low))


def _codes(
    data: Float32Array, low: Float32Array, high: Float32Array, width: np.float32, levels: np.float32
) -> Float32Array:
    codes = np.round(_factor(low, high, width) * (data - low))
    return np.clip(codes, 0, levels).astype(np.float32, copy=False)


def _sum(values: Float32Array) -> Float32Array:
    total: Float32Array = values.sum(axis=1, keepdims=True)
    return total


def _packed(codes: Bytes, bits: int) -> Bytes:
    """Codes of each row, two to a byte where they have 4 bits; an odd last one stands alone."""
    if bits == 8:
        return codes
    if codes.shape[1] % 2:
        codes = np.concatenate([codes, np.zeros((len(codes), 1), dtype=np.uint8)], axis=1)
    packed: Bytes = codes[:, ::2] | codes[:, 1::2] << np.uint8(4)
    return packed


def _unpacked(packed: Bytes, bits: int) -> Bytes:
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)
