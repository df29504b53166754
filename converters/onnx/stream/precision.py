"""Which matrix is stored how."""

from __future__ import annotations

from dataclasses import dataclass, replace

from edgeadapt.adapters.sequential import MODULE
from edgeadapt.converters.onnx.options import sensitive_layers
from edgeadapt.converters.onnx.stream.architecture import Linear
from edgeadapt.converters.onnx.stream.blocks import BlockScheme


@dataclass(frozen=True)
class Precision:
    """What matrices are stored as."""

    name: str
    """`fp32`, `fp16`, `int8` or `int4`."""
    blocks: BlockScheme | None = None
    """For those of them that are quantized."""
    mixed: bool = False
    """Head and sensitive layers in 8 bits, the rest in 4."""
    accuracy_level: int = 4
    """4: the kernels round activations to int8 in blocks, which is what the fast ones take."""

    def scheme(self, linear: Linear, layer: int | None, layers: int) -> BlockScheme | None:
        """How one matrix is quantized; None: it is not.

        Mixed, the head has 8 bits, and so have q, k, v and the MLP's way down in the sensitive
        layers. The bottlenecks of adapters always have: they are few weights, and what was trained.
        """
        if self.blocks is None:
            return None
        wide = replace(self.blocks, bits=8)
        if f".{MODULE}." in linear.name:
            return wide
        if not self.mixed:
            return self.blocks
        if layer is None:
            return wide
        part = linear.name.rpartition(".")[2]
        sensitive = part in ("q_proj", "k_proj", "v_proj", "qkv_proj", "down_proj")
        return wide if sensitive and layer in sensitive_layers(layers) else self.blocks

    def table(self, head: BlockScheme | None, tied: bool) -> BlockScheme | None:
        """How the embedding is quantized: as the head where it is the head, else in 8 bits.

        Looking a row up costs next to nothing, so the table need not be as small as a product.
        """
        return head if tied or head is None else replace(head, bits=8)
