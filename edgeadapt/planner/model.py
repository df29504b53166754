"""What planning needs to know of a model: its size in every quantization, a token's cost."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgeadapt.errors import InputError
from edgeadapt.prediction import Workload
from edgeadapt.prediction.workload import Kernel, read_quantization
from edgeadapt.weights import (
    WeightSource,
    find_embedding,
    is_tied,
    kv_bytes_per_token,
    parameter_count,
)

BITS_PER_WEIGHT = {
    ("gguf", "F32"): 32.0,
    ("gguf", "F16"): 16.0,
    ("gguf", "BF16"): 16.0,
    ("gguf", "Q8_0"): 8.5,
    ("gguf", "Q6_K"): 6.5625,
    ("gguf", "Q5_K_M"): 5.7,
    ("gguf", "Q4_K_M"): 4.85,
    ("gguf", "Q4_0"): 4.55,
    ("onnx", "fp32"): 32.0,
    ("onnx", "fp16"): 16.0,
    ("onnx", "int8"): 9.3,
    ("onnx", "int8-dynamic"): 8.5,
    ("onnx", "int4"): 6.7,
}
"""Bits of a file divided by parameters, for models of a billion parameters and more, where the
exact size cannot be had. The plain block types follow from their layout (Q8_0: 34 bytes for 32
weights); mixes, and types whose embeddings or head stay wider, are rounded up from files of such
models."""

ExactSize = Callable[[str, str], int | None]
"""Bytes of the artifact in a format and quantization; None if only an estimate can be had.

Raises UnsupportedError where the format has no place for the model."""


@dataclass(frozen=True)
class ModelFacts:
    """A model, as far as planning goes."""

    parameters: int
    """Embeddings included."""
    active: int
    """Of them, those multiplied for each token: without an embedding that is only looked up, and
    with as many experts as are chosen."""
    kv_bytes_per_token: int
    """Of one token in a float16 KV cache, all layers."""
    max_context: int | None = None
    """Tokens that the model was made for."""
    exact_size: ExactSize | None = None

    def shape(self) -> dict[str, Any]:
        """All but the sizes of artifacts, as JSON and as this class's own arguments."""
        return {
            "parameters": self.parameters,
            "active": self.active,
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "max_context": self.max_context,
        }

    def size(self, format: str, quantization: str) -> tuple[float, bool]:
        """Bytes of the artifact, and whether they are exact.

        Raises:
            InputError: the size of this quantization is not known.
            UnsupportedError: the format has no place for the model.
        """
        exact = self.exact_size(format, quantization) if self.exact_size else None
        if exact is not None:
            return float(exact), True
        if (format, quantization) not in BITS_PER_WEIGHT:
            known = ", ".join(name for kind, name in BITS_PER_WEIGHT if kind == format)
            raise InputError(
                f"the size of the {format} quantization {quantization!r} is not known; choose "
                f"from {known}"
            )
        return self.parameters * BITS_PER_WEIGHT[format, quantization] / 8, False

    def workload(self, quantization: str, size: float, depth: int, kv_width: float) -> Workload:
        """What a token costs at `depth` tokens in the cache, at `kv_width` times float16."""
        known = read_quantization(quantization)
        kernel: Kernel = known[1] if known else "k"
        return Workload(
            file_bytes=size,
            read_bytes=size * self.active / self.parameters,
            active=self.active,
            kv_bytes=self.kv_bytes_per_token * kv_width * depth,
            kernel=kernel,
        )


def model_facts(source: WeightSource, exact_size: ExactSize | None = None) -> ModelFacts:
    """Read them off a model's tensors and config.

    Raises:
        CorruptFileError: the config does not give the size of the KV cache.
    """
    config = source.config
    total = parameter_count(source)
    active = float(total)
    if not is_tied(source):
        active -= source.tensors()[find_embedding(source)].size
    if share := _chosen_experts(config):
        experts = sum(
            info.size for name, info in source.tensors().items() if re.search(r"\.experts\.", name)
        )
        active -= experts * (1 - share)
    limit = config.get("max_position_embeddings")
    return ModelFacts(
        parameters=total,
        active=round(active),
        kv_bytes_per_token=kv_bytes_per_token(config),
        max_context=limit if isinstance(limit, int) and limit > 0 else None,
        exact_size=exact_size,
    )


def _chosen_experts(config: dict[str, Any]) -> float | None:
    """Part of the experts that each token is sent to; None where there are none."""
    chosen = config.get("num_experts_per_tok")
    for key in ("num_experts", "num_local_experts", "n_routed_experts"):
        count = config.get(key)
        if isinstance(count, int) and isinstance(chosen, int) and 0 < chosen <= count:
            return chosen / count
    return None
