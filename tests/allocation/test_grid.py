"""Weights that were quantized once before are told from those that were not."""

from __future__ import annotations

import numpy as np
import pytest

from edgeadapt.allocation.grid import grid_of
from edgeadapt.converters.gguf.ggml import dequantize_rows, quantize_rows
from edgeadapt.converters.gguf.mixes import TENSOR_TYPES
from edgeadapt.weights import Float32Array

pytest.importorskip("llama_cpp")


def stored(kind: str, seed: int) -> Float32Array:
    rows = np.random.default_rng(seed).standard_normal((8, 512), dtype=np.float32)
    return dequantize_rows(quantize_rows(rows, TENSOR_TYPES[kind]), TENSOR_TYPES[kind], 512)


def bfloat16(rows: Float32Array) -> Float32Array:
    return ((rows.view(np.uint32) + 0x8000) & 0xFFFF0000).astype(np.uint32).view(np.float32)


@pytest.mark.parametrize(
    ("kind", "grid"),
    [
        ("Q4_0", (16, 32)), ("Q4_1", (16, 32)), ("Q4_K", (16, 32)), ("Q5_0", (32, 32)),
        ("Q5_1", (32, 32)), ("Q3_K", (8, 16)), ("Q2_K", (4, 16)), ("IQ4_NL", (16, 32)),
        ("F32", None), ("F16", None), ("BF16", None), ("Q8_0", None), ("Q6_K", None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("seed", range(3))
def test_each_type(kind: str, grid: tuple[int, int] | None, seed: int) -> None:
    assert grid_of(stored(kind, seed)) == grid
    assert grid_of(stored(kind, seed).astype(np.float16).astype(np.float32)) == grid


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q4_K"])
def test_four_bits_show_through_bfloat16(kind: str) -> None:
    assert grid_of(bfloat16(stored(kind, 0))) == (16, 32)


def test_uneven_levels_are_found_by_their_number() -> None:
    levels = np.array([-1, -0.7, -0.53, -0.39, -0.28, -0.18, -0.09, 0, 0.08, 0.16, 0.25, 0.34,
                       0.44, 0.56, 0.72, 1], np.float32)  # fmt: skip
    chosen = np.random.default_rng(0).integers(0, 16, (4, 256))
    assert grid_of(levels[chosen]) == (16, 32)


def test_equal_weights_are_a_grid_of_the_least_levels() -> None:
    assert grid_of(np.zeros((2, 64), np.float32)) == (4, 32)


def test_rows_that_are_no_blocks_lie_on_none() -> None:
    assert grid_of(np.ones((3, 20), np.float32)) is None
