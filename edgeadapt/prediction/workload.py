"""What one token costs: weights read and multiplied, and keys and values read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from edgeadapt.errors import InputError
from edgeadapt.prediction.models import find_model

_GIB = 1 << 30

Kernel = Literal["f16", "q8", "q4", "k"]
"""Groups of weight types whose kernels cost alike: float, 8-bit blocks, plain 4-bit blocks, and
K- and I-quants, which unpack more for each weight."""


@dataclass(frozen=True)
class Workload:
    """A model in one quantization, as far as speed and memory go."""

    file_bytes: float
    """Of the weights as stored."""
    read_bytes: float
    """Weights read for each decoded token: less than the file where experts sleep or an embedding
    is only looked up."""
    active: float
    """Weights multiplied for each token."""
    kv_bytes: float
    """Keys and values read for each token decoded at this depth."""
    kernel: Kernel

    def __post_init__(self) -> None:
        if not (self.read_bytes > 0 and self.active > 0 and self.kv_bytes >= 0):
            raise ValueError("a workload needs positive bytes and weights")


_BITS: tuple[tuple[str, float, Kernel], ...] = (
    (r"f32|fp32", 32, "f16"),
    (r"bf16|fp16|\bf16|w16a16", 16, "f16"),
    (r"q8_0|q8\b|int8|w8a|8[- ]?bit|fp8", 8.5, "q8"),
    (r"q6_k", 6.6, "k"),
    (r"q5_k", 5.7, "k"),
    (r"q5_[01]", 5.6, "k"),
    (r"q4_k_xl", 5.0, "k"),
    (r"q4_k_s", 4.6, "k"),
    (r"q4_k|\bq4km", 4.87, "k"),
    (r"q3_k_l", 4.3, "k"),
    (r"q3_k_s", 3.65, "k"),
    (r"q3_k", 4.0, "k"),
    (r"q2_k", 3.4, "k"),
    (r"iq4", 4.5, "k"),
    (r"iq3", 3.5, "k"),
    (r"iq2", 2.6, "k"),
    (r"iq1|tq1", 2.0, "k"),
    (r"tq2|i2_s|bitnet|1\.58", 2.3, "k"),
    (r"mxfp4|nvfp4", 4.4, "q4"),
    (r"int4-mixed", 4.9, "q4"),
    (r"q4_1", 5.1, "q4"),
    (r"q4_0|q4\b|int4|w4a|\bw4\b|4[- ]?bit|4bit|awq|gptq|hqq", 4.6, "q4"),
    (r"int3|w3a|\bw3\b|3[- ]?bit", 3.6, "k"),
    (r"int2|w2a|\bw2\b|2[- ]?bit", 2.7, "k"),
)
"""Pattern, bits a weight of a whole file of some billion weights, and kernel group. The first that
matches wins. Files differ by some percent: the embedding and a few tensors stay wider."""


def read_quantization(text: str) -> tuple[float, Kernel] | None:
    """Bits a weight and kernel group of a quantization as people write it; None if not known."""
    name = text.lower()
    found = next(((bits, kernel) for p, bits, kernel in _BITS if re.search(p, name)), None)
    if stated := re.search(r"(\d+(?:\.\d+)?)\s*bpw", name):
        bits = float(stated.group(1))
        return (bits, found[1] if found else "k") if 1 <= bits <= 32 else found
    return found


def named_workload(
    model: str,
    quantization: str,
    *,
    billions: float | None = None,
    file_gib: float | None = None,
    depth: int = 0,
) -> Workload:
    """The workload of a published model, from its name, what is known of it, and a quantization.

    Args:
        model: as a table names it: `Llama-2-7B`, `qwen2.5:1.5b`, `Qwen3-30B-A3B`.
        quantization: as a table names it: `Q4_K_M`, `w8a8`, `int4`, `3.87bpw`.
        billions: of parameters, in all; read from the name if not given.
        file_gib: size of the file; from parameters and bits if not given.
        depth: tokens in the KV cache, at float16.

    Raises:
        InputError: neither the file's size nor parameters and quantization are known.
    """
    shape = find_model(model, billions)
    known = read_quantization(quantization)
    if shape is None and file_gib is None:
        raise InputError(f"the size of {model or 'the model'} is not known")
    if known is None and file_gib is None:
        raise InputError(
            f"the quantization {quantization!r} is not known, and neither is the file's size"
        )
    if file_gib is None:
        assert shape is not None and known is not None
        size = shape.total * 1e9 * known[0] / 8
    else:
        size = file_gib * _GIB
    bits, kernel = known or (None, "k")
    if shape is None:
        weights = size * 8 / (bits or 5.0)
        return Workload(size, size, weights, depth * 16e3 * (weights / 1e9) ** 0.5, kernel)
    return Workload(
        file_bytes=size,
        read_bytes=size * shape.active / shape.total,
        active=shape.active * 1e9,
        kv_bytes=depth * shape.kv_bytes,
        kernel=kernel,
    )
