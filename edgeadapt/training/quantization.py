"""Hold a base in NF4 while training, on whatever hardware there is.

Two choices depend on it, measured with bitsandbytes 0.50 on the 135M model. On a CPU without
AVX512-BF16 a training step in bfloat16 takes minutes and in float32 seconds. Double quantization
saves 0.4 bits a weight and makes CPU dequantization three times slower.
"""

from __future__ import annotations

import copy
import functools
import logging
from dataclasses import dataclass
from typing import Any

from edgeadapt.adapters.four_bit import BLOCK
from edgeadapt.cpu import this_cpu
from edgeadapt.errors import RuntimeFailure
from edgeadapt.extras import need


@dataclass(frozen=True)
class Nf4Settings:
    """How NF4 weights are stored and multiplied."""

    compute_dtype: str
    """`float32`, `bfloat16` or `float16`."""
    double_quantization: bool
    reason: str


def nf4_settings(*, cuda: bool, cuda_bf16: bool, avx512_bf16: bool) -> Nf4Settings:
    """Choose by what the hardware has."""
    if cuda:
        return Nf4Settings("bfloat16" if cuda_bf16 else "float16", True, "CUDA")
    if avx512_bf16:
        return Nf4Settings("bfloat16", False, "CPU with AVX512-BF16")
    return Nf4Settings("float32", False, "CPU without AVX512-BF16")


def detect_nf4_settings() -> Nf4Settings:
    """Choose for this machine."""
    torch = need("torch", "training")
    cuda = torch.cuda.is_available()
    return nf4_settings(
        cuda=cuda,
        cuda_bf16=cuda and torch.cuda.is_bf16_supported(),
        avx512_bf16="avx512_bf16" in this_cpu().features,
    )


def bitsandbytes_config(settings: Nf4Settings, kind: str = "nf4") -> Any:
    """The `BitsAndBytesConfig` for `from_pretrained`.

    Args:
        settings: how to store and multiply.
        kind: `nf4`, or `fp4` for adapters that were trained elsewhere.

    Raises:
        MissingExtraError: bitsandbytes is not installed.
    """
    torch = need("torch", "training")
    transformers = need("transformers", "training")
    quiet_bitsandbytes()
    need("bitsandbytes", "training on an NF4 base (method qlora)")
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_compute_dtype=getattr(torch, settings.compute_dtype),
        bnb_4bit_use_double_quant=settings.double_quantization,
    )


def quiet_bitsandbytes() -> None:
    """Drop one line that bitsandbytes logs when imported on a CPU with AVX512-BF16.

    It asks for the package `kernels`, which would fetch binaries from a hub and is not wanted.
    """
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    if _not_about_kernels not in logger.filters:
        logger.addFilter(_not_about_kernels)


def _not_about_kernels(record: logging.LogRecord) -> bool:
    return "kernels-community" not in str(record.msg)


def guard_linear4bit(model: Any) -> list[str]:
    """Keep bitsandbytes from repacking NF4 weights in a model that is, or was, trained with them.

    On a CPU with AVX512-BF16, bitsandbytes 0.50 answers one forward in eval mode by repacking
    every `Linear4bit` for an inference kernel, in place; the backward pass of later training
    steps still reads the weights as if in the old order, and gradients are wrong without a word.
    It packs without a lock, so that two threads spoil the weights, and fails where a row's length
    is no multiple of 64. Such rows its AVX512 kernel also reads with the magnitudes of other
    blocks; those layers are given a forward of ours. Call this before the model's first forward.

    Returns:
        The names of the layers.

    Raises:
        RuntimeFailure: a layer is already repacked.
    """
    bitsandbytes = need("bitsandbytes", "training on an NF4 base (method qlora)")
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, bitsandbytes.nn.Linear4bit)
    }
    for layer in layers.values():
        layer.support_avx512bf16_for_cpu = False
        if getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
            raise RuntimeFailure(
                "bitsandbytes has repacked this NF4 model for inference, which makes its "
                "gradients wrong; load the model again and train before evaluating"
            )
        if layer.in_features % BLOCK:
            layer.forward = functools.partial(_forward, layer)
    return list(layers)


def _forward(layer: Any, x: Any) -> Any:
    """What `Linear4bit` is to compute, whatever the length of its rows."""
    torch = need("torch", "training on an NF4 base (method qlora)")
    weight = dequantized(layer.weight)
    dtype = layer.compute_dtype or x.dtype
    bias = None if layer.bias is None else layer.bias.to(dtype)
    return torch.nn.functional.linear(x.to(dtype), weight.to(dtype), bias).to(x.dtype)


def dequantized(weight: Any) -> Any:
    """A 4-bit weight as bitsandbytes' codes and magnitudes give it, in the state's type.

    As one long row: for rows that are no multiple of 64, its kernel for AVX512 (in 0.50) takes the
    magnitudes of other blocks.

    Args:
        weight: the parameter of a `Linear4bit`, or its data with the state as `quant_state`.
    """
    functional = need("bitsandbytes.functional", "training on an NF4 base (method qlora)")
    state = copy.copy(weight.quant_state)
    shape = state.shape
    state.shape = type(shape)((1, shape.numel()))
    return functional.dequantize_4bit(weight.data.reshape(-1, 1), state).reshape(shape)
