"""Options of `edgeadapt export` that are for ONNX alone, gathered into one `OnnxOptions`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from edgeadapt.converters.onnx.options import (
    ACCURACY_LEVELS,
    ALGORITHMS,
    BLOCK_SIZES,
    PRESETS,
    OnnxOptions,
)

_OPTIONS = (
    click.option(
        "--exporter",
        type=click.Choice(["stream", "builder", "optimum"]),
        help="onnx: what writes the graph. stream is edgeadapt's own, in little memory, and the "
        "default where it knows model and quantization; builder is onnxruntime-genai's, the "
        "default elsewhere; optimum knows more architectures, after `edgeadapt setup optimum`.",
    ),
    click.option(
        "--algorithm", type=click.Choice(ALGORITHMS), help="onnx int4 and int8: how to quantize."
    ),
    click.option(
        "--block-size",
        type=click.Choice([str(size) for size in BLOCK_SIZES]),
        help="onnx int4 and int8: weights that share a scale; 32 by default.",
    ),
    click.option(
        "--symmetric/--asymmetric",
        default=None,
        help="onnx int4 and int8: without or with zero points; with, where they can be packed.",
    ),
    click.option(
        "--accuracy-level",
        type=click.Choice([str(level) for level in ACCURACY_LEVELS]),
        help="onnx int4 and int8: what activations may be rounded to: "
        + ", ".join(f"{level} {name}" for level, name in ACCURACY_LEVELS.items())
        + "; 4 by default.",
    ),
    click.option(
        "--instruction-set",
        type=click.Choice([name.replace("_", "-") for name in PRESETS]),
        help="onnx int8-dynamic: the CPU to make it for; avx2, which is right on all, by default.",
    ),
)


def onnx_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options; the wrapped function receives `onnx: OnnxOptions`."""

    @functools.wraps(function)
    def wrapper(
        *args: Any,
        exporter: str | None,
        algorithm: str | None,
        block_size: str | None,
        symmetric: bool | None,
        accuracy_level: str | None,
        instruction_set: str | None,
        **kwargs: Any,
    ) -> Any:
        options = OnnxOptions(
            exporter=exporter,
            algorithm=algorithm,
            block_size=int(block_size) if block_size else None,
            symmetric=symmetric,
            accuracy_level=int(accuracy_level) if accuracy_level else None,
            preset=instruction_set and instruction_set.replace("-", "_"),
        )
        return function(*args, onnx=options, **kwargs)

    for option in reversed(_OPTIONS):
        wrapper = option(wrapper)
    return wrapper
