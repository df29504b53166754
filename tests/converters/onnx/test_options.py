"""What an export asks for: defaults, and combinations that are refused before any work."""

from __future__ import annotations

from typing import Any

import pytest

from edgeadapt.converters.onnx.builder import after, builder_options
from edgeadapt.converters.onnx.options import (
    ALGORITHMS,
    BLOCK_SIZES,
    OnnxOptions,
    sensitive_layers,
    settle,
)
from edgeadapt.converters.onnx.writers import get_writer, writer_names
from edgeadapt.errors import InputError, UnsupportedError


@pytest.mark.parametrize(("width", "symmetric"), [(64, False), (96, True), (65, True)])
def test_zero_points_come_in_pairs(width: int, symmetric: bool) -> None:
    settings = settle("int4", OnnxOptions(), tied=True, widths={128, width})
    assert settings.symmetric is symmetric


@pytest.mark.parametrize("options", [{"symmetric": False}, {"algorithm": "k_quant"}])
def test_zero_points_that_cannot_be_packed(options: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match="odd number of blocks of 32"):
        settle("int4", OnnxOptions(**options), tied=True, widths={96})
    assert settle("int8", OnnxOptions(**options), tied=True, widths={96}).symmetric is False
    even = settle("int4", OnnxOptions(**options, block_size=16), tied=True, widths={96})
    assert even.symmetric is False


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_everything_that_changes_numbers_is_recorded(algorithm: str, block_size: int) -> None:
    options = OnnxOptions(algorithm=algorithm, block_size=block_size, accuracy_level=1)
    settings = settle("int4", options, tied=False, widths={1024})
    assert settings.record() == {
        "quantization": "int4",
        "shared_embeddings": False,
        "algorithm": algorithm.removesuffix("_mixed"),
        "mixed": algorithm.endswith("_mixed"),
        "block_size": block_size,
        "symmetric": False,
        "accuracy_level": 1,
    }
    asked = builder_options(settings)
    assert asked["block_size"] == str(block_size) and asked["accuracy_level"] == "1"
    assert ("matmul_mixed_precision" in asked) == settings.mixed
    assert bool(after(settings)) == (settings.algorithm == "hqq")


@pytest.mark.parametrize(
    ("quantization", "options", "word"),
    [
        ("fp32", {"algorithm": "rtn"}, "--algorithm is for int4 and int8"),
        ("fp16", {"block_size": 32}, "--block-size"),
        ("int8-dynamic", {"accuracy_level": 4}, "--accuracy-level"),
        ("int8", {"algorithm": "hqq"}, "int8 has rtn and k_quant"),
        ("int4", {"preset": "avx2"}, "int8-dynamic"),
        ("int4", {"algorithm": "hqq", "symmetric": True}, "hqq always has zero points"),
        ("int3", {}, "no quantization 'int3'.*int4"),
    ],
)
def test_what_does_not_go_together(quantization: str, options: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word):
        settle(quantization, OnnxOptions(**options), tied=True)


@pytest.mark.parametrize(
    "options", [{"algorithm": "gptq"}, {"block_size": 48}, {"accuracy_level": 7}, {"preset": "mmx"}]
)
def test_unknown_values_name_the_known_ones(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="choose one of"):
        OnnxOptions(**options)


def test_exporters() -> None:
    assert writer_names()[0] == get_writer("stream").name == "stream"
    with pytest.raises(InputError, match=r"'torch'.*builder.*optimum"):
        get_writer("torch")


def test_sensitive_layers_are_llama_cpps() -> None:
    """use_more_bits of llama.cpp: first and last eighth, and every third between."""
    layers = 32
    expected = [
        i for i in range(layers) if i < layers // 8 or i >= 7 * layers // 8
        or (i - layers // 8) % 3 == 2
    ]  # fmt: skip
    assert sensitive_layers(layers) == expected
