"""Blockwise quantization: bit for bit onnxruntime's own, and back again within half a step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeadapt.converters.onnx.stream.blocks import ALGORITHMS, BlockScheme, dequantize, quantize

onnx = pytest.importorskip("onnx")
quantizer = pytest.importorskip("onnxruntime.quantization.matmul_nbits_quantizer")


def onnxruntimes(rows: np.ndarray, scheme: BlockScheme) -> dict[str, np.ndarray]:
    """What onnxruntime makes of x @ rows.T: initializers by the last part of their names."""
    helper = onnx.helper
    count, columns = rows.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "g",
        [helper.make_tensor_value_info("x", 1, [1, columns])],
        [helper.make_tensor_value_info("y", 1, [1, count])],
        [onnx.numpy_helper.from_array(np.ascontiguousarray(rows.T), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    kind = {
        "rtn": quantizer.RTNWeightOnlyQuantConfig,
        "k_quant": quantizer.KQuantWeightOnlyQuantConfig,
    }[scheme.algorithm]
    work = quantizer.MatMulNBitsQuantizer(
        model=model,
        bits=scheme.bits,
        block_size=scheme.block,
        is_symmetric=scheme.symmetric,
        accuracy_level=4,
        algo_config=kind(customized_weight_config={"product": {"bits": scheme.bits}}),
    )
    work.process()
    return {
        tensor.name.rpartition("_")[2]: onnx.numpy_helper.to_array(tensor)
        for tensor in work.model.model.graph.initializer
    }


def matrix(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Blocks of many sizes, some all alike, some all zero, some beside zero."""
    random = np.random.default_rng(seed)
    values = random.standard_normal((rows, columns)) * np.exp(random.normal(0, 2, (rows, 1)))
    values[0], values[1, : columns // 2], values[2] = 0, 0.25, np.abs(values[2]) + 3
    values[3] = -values[2]
    return values.astype(np.float32)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("columns", "block"), [(256, 32), (192, 16), (256, 128), (200, 32)])
def test_equals_onnxruntime(
    algorithm: str, symmetric: bool, bits: int, columns: int, block: int
) -> None:
    scheme = BlockScheme(bits, block, symmetric, algorithm)  # type: ignore[arg-type]
    if -(-columns // block) % 2 and bits == 4 and scheme.has_zeros:
        pytest.skip("onnxruntime cannot pack an odd number of zero points")
    rows = matrix(24, columns)
    theirs = onnxruntimes(rows, scheme)
    assert ("zp" in theirs) == scheme.has_zeros
    # Blocks of one sign, which onnxruntime reads back as something else: see the next test.
    same = spans_zero(rows, block)
    assert same[4:].all() and not same.all()
    same |= not scheme.has_zeros
    values, scales, zeros = quantize(rows, scheme)
    np.testing.assert_array_equal(values[same], theirs[f"Q{bits}G{block}"][same])
    np.testing.assert_array_equal(scales[same], theirs["scale"][same])
    if scheme.has_zeros:
        found, expected = (unpacked(x, bits, same.shape[1]) for x in (zeros, theirs["zp"]))
        np.testing.assert_array_equal(found[same], expected[same])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("low", [3, 1e-3, 0.999])
def test_blocks_of_one_sign(algorithm: str, bits: int, low: float) -> None:
    """Within half a step of the range that includes zero; k_quant weighs large values more."""
    scheme = BlockScheme(bits, 32, algorithm=algorithm)  # type: ignore[arg-type]
    rows = np.random.default_rng(0).uniform(low, low + 1, (8, 64)).astype(np.float32)
    rows[0], rows[1, ::2], rows[1, 1::2] = low, low, low + 1
    for given_rows in (rows, -rows):
        back = dequantize(*quantize(given_rows, scheme), 64, bits)
        step = np.abs(given_rows).max() / (2**bits - 1)
        assert np.abs(back - given_rows).max() < (0.51 if algorithm == "rtn" else 1.5) * step
    np.testing.assert_allclose(back[0], -low, rtol=1e-6)


def spans_zero(rows: np.ndarray, block: int) -> np.ndarray:
    """Which blocks hold zero or values of both signs, shape (rows, blocks)."""
    padding = -rows.shape[1] % block
    blocks = np.pad(rows, ((0, 0), (0, padding))).reshape(len(rows), -1, block)
    spans: np.ndarray = (blocks.min(axis=2) <= 0) & (blocks.max(axis=2) >= 0)
    return spans


def unpacked(zeros: np.ndarray, bits: int, blocks: int) -> np.ndarray:
    """Zero points, shape (rows, blocks)."""
    if bits == 8:
        return zeros
    return np.stack([zeros & 15, zeros >> 4], axis=2).reshape(len(zeros), -1)[:, :blocks]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(4, 9),
    columns=st.integers(2, 150),
    bits=st.sampled_from([4, 8]),
    block=st.sampled_from([16, 32, 64]),
    symmetric=st.booleans(),
)
def test_round_trip(
    seed: int, rows: int, columns: int, bits: int, block: int, symmetric: bool
) -> None:
    """No weight moves by more than half a step, plus half a step where the zero was rounded."""
    given_rows = matrix(rows, columns, seed)
    scheme = BlockScheme(bits, block, symmetric)  # type: ignore[arg-type]
    values, scales, zeros = quantize(given_rows, scheme)
    assert (values.shape, scales.shape, zeros.shape) == scheme.shapes(rows, columns)
    back = dequantize(values, scales, zeros, columns, bits)
    padded = np.zeros((rows, scales.shape[1] * block), dtype=np.float32)
    padded[:, :columns] = given_rows
    blocks = padded.reshape(rows, -1, block)
    error = np.zeros_like(padded)
    error[:, :columns] = np.abs(back - given_rows)
    worst = error.reshape(blocks.shape).max(axis=2)
    assert (worst <= scales * 1.0001 + 1e-30).all()


def test_chunks_of_rows_are_independent() -> None:
    rows, scheme = matrix(40, 96), BlockScheme(4)
    whole = quantize(rows, scheme)
    for start in range(0, 40, 7):
        for part, all_of_it in zip(quantize(rows[start : start + 7], scheme), whole, strict=True):
            np.testing.assert_array_equal(part, all_of_it[start : start + 7])
