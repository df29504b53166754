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
    values, scales, zeros = quantize(rows, scheme)
    np.testing.assert_array_equal(values, theirs[f"Q{bits}G{block}"])
    np.testing.assert_array_equal(scales, theirs["scale"])
    assert ("zp" in theirs) == scheme.has_zeros
    if scheme.has_zeros:
        np.testing.assert_array_equal(zeros, theirs["zp"])


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
    spans_zero = (blocks.min(axis=2) <= 0) & (blocks.max(axis=2) >= 0)
    error = np.zeros_like(padded)
    error[:, :columns] = np.abs(back - given_rows)
    worst = error.reshape(blocks.shape).max(axis=2)
    assert (worst[spans_zero] <= scales[spans_zero] * 1.0001 + 1e-30).all()


def test_chunks_of_rows_are_independent() -> None:
    rows, scheme = matrix(40, 96), BlockScheme(4)
    whole = quantize(rows, scheme)
    for start in range(0, 40, 7):
        for part, all_of_it in zip(quantize(rows[start : start + 7], scheme), whole, strict=True):
            np.testing.assert_array_equal(part, all_of_it[start : start + 7])
