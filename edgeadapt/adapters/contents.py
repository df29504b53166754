"""What an adapter's safetensors file holds, module by module."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgeadapt.adapters.spec import WEIGHTS, AdapterSpec
from edgeadapt.errors import AdapterError
from edgeadapt.safetensors_io import SafetensorsFile
from edgeadapt.weights import (
    HEAD,
    Float32Array,
    TensorInfo,
    TensorReader,
    WeightSource,
    find_embedding,
    read_tensor,
    row_chunks,
)

# What follows a module's name in an adapter file, per PEFT's save_pretrained. A name that ends
# in none of these is a whole tensor: modules_to_save, or a bias that was trained.
_PART = re.compile(
    r"^(?P<module>.+?)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_A"
    r"|lora_embedding_B|lora_magnitude_vector|ia3_l|token_adapter\.trainable_tokens_delta"
    r"|base_layer\.weight|base_layer\.bias)(?:\.weight)?$"
)
_WHOLE = re.compile(r"^(?P<module>.+?)\.(?:modules_to_save\.)?(?P<part>weight|bias)$")

# The module as it was before modules_to_save copied it; PEFT saves it with a resized vocabulary,
# and the adapted model does not use it.
_UNTRAINED = re.compile(r"\.original_module\.(weight|bias)$")

Parts = dict[str, str]
"""Part of a module (`lora_A.weight`, `weight`, ...) -> name of its tensor in the file."""


def read_finite(file: SafetensorsFile, key: str) -> Float32Array:
    """A whole tensor of an adapter's file.

    Raises:
        AdapterError: it holds NaN or infinite values.
    """
    return _finite(file, key, read_tensor(file, key))


def _finite(file: SafetensorsFile, key: str, values: Float32Array) -> Float32Array:
    if not np.isfinite(values).all():
        raise AdapterError(f"{file.path}: {key!r} holds NaN or infinite values")
    return values


class AdapterContents:
    """The tensors of a LoRA or IA3 adapter, grouped by the module that they change."""

    def __init__(self, spec: AdapterSpec) -> None:
        """Open the file; no tensor is read yet.

        Raises:
            AdapterError: a tensor is of no known kind, or there is none.
            CorruptFileError: the file is damaged.
        """
        self.spec = spec
        self.file = SafetensorsFile(spec.path / WEIGHTS)
        self.modules = self._grouped()

    def _grouped(self) -> dict[str, Parts]:
        grouped: dict[str, Parts] = {}
        for name in self.file.tensors():
            if _UNTRAINED.search(name):
                continue
            stripped = name.removeprefix("base_model.model.")
            match = _PART.match(stripped) or _WHOLE.match(stripped)
            if match is None:
                raise AdapterError(
                    f"{self.file.path} holds {name!r}, which edgeadapt does not know how to "
                    f"merge for method {self.spec.method}"
                )
            parts = grouped.setdefault(match["module"], {})
            other = parts.setdefault(match["part"], name)
            if other != name and not _same(self.file, other, self.file, name):
                raise AdapterError(f"{self.file.path} holds two tensors for {stripped!r}")
        if not grouped:
            raise AdapterError(f"{self.file.path} holds no tensors; was the adapter trained?")
        return grouped

    def info(self, key: str) -> TensorInfo:
        """Shape and type of one of the file's tensors."""
        return self.file.tensors()[key]

    def read(self, key: str) -> Float32Array:
        """A whole tensor.

        Raises:
            AdapterError: it holds NaN or infinite values.
        """
        return read_finite(self.file, key)

    def rows(self, key: str, start: int, stop: int) -> Float32Array:
        """Rows [start, stop) of a tensor; raises as `read`."""
        return _finite(self.file, key, self.file.rows(key, start, stop))

    def misfit(
        self, key: str, given: tuple[int, ...], name: str, expected: tuple[int, ...]
    ) -> AdapterError:
        """The error to raise where shapes of adapter and base disagree."""
        return AdapterError(
            f"the adapter's {key} has shape {given}, but the base's {name} has {expected}; the "
            f"adapter was trained on {self.spec.base_model or 'another base'}: give that base"
        )


WHOLE = frozenset({"weight", "bias", "base_layer.weight", "base_layer.bias"})
"""Parts that are whole tensors of the model."""


def changes(contents: AdapterContents, base: WeightSource) -> dict[str, Parts]:
    """The adapter's parts by module, without mere copies of what the base has.

    PEFT saves embedding and head beside an adapter that targets one of them, changed or not.

    Args:
        contents: the adapter.
        base: as it was before any adapter.
    """
    kept = {}
    for module, parts in contents.modules.items():
        left = {
            part: key
            for part, key in parts.items()
            if part not in WHOLE or not _is_copy(contents, key, base, f"{module}.{part}")
        }
        if left:
            kept[module] = left
    return kept


def _is_copy(contents: AdapterContents, key: str, base: WeightSource, name: str) -> bool:
    name = name.replace(".base_layer.", ".")
    if name == HEAD and name not in base.tensors():
        name = find_embedding(base)
    return name in base.tensors() and _same(contents.file, key, base, name)


def _same(left: TensorReader, a: str, right: TensorReader, b: str) -> bool:
    """Whether two tensors are equal, number for number."""
    info = left.tensors()[a]
    return info.shape == right.tensors()[b].shape and all(
        np.array_equal(left.rows(a, start, stop), right.rows(b, start, stop))
        for start, stop in row_chunks(info)
    )


@dataclass(frozen=True)
class LoraKeys:
    """One module's LoRA: its tensors by name, checked against the weight that they change."""

    a: str
    b: str
    rank: int
    scale: float
    """Factor on B @ A."""
    embedding: bool
    transposed: bool
    """The weight is stored (in, out)."""
    magnitude: str | None = None
    bias: str | None = None


def lora_keys(
    contents: AdapterContents, module: str, given: Mapping[str, str], weight: TensorInfo
) -> LoraKeys:
    """Find and check a module's LoRA tensors.

    Args:
        contents: the adapter.
        module: full name of the module.
        given: its parts, those of a LoRA alone.
        weight: the base tensor that they change.

    Raises:
        AdapterError: one is missing, left over or of another shape than the base or config say.
    """
    parts = dict(given)
    embedding = "lora_embedding_A" in parts
    a = parts.pop("lora_embedding_A" if embedding else "lora_A.weight", None)
    b = parts.pop("lora_embedding_B" if embedding else "lora_B.weight", None)
    magnitude = parts.pop("lora_magnitude_vector", None)
    bias = parts.pop("lora_B.bias", None)
    if a is None or b is None or parts:
        raise AdapterError(
            f"the adapter's tensors for {module!r} are incomplete: a LoRA needs both A and B"
        )
    transposed = embedding or contents.spec.fan_in_fan_out
    shape_a, shape_b = contents.info(a).shape, contents.info(b).shape
    if len(shape_a) != 2 or len(shape_b) != 2 or shape_a[0] != shape_b[1] or not shape_a[0]:
        raise AdapterError(
            f"LoRA A {shape_a} and B {shape_b} of {module!r} do not multiply; the adapter "
            "file is damaged, or its layer is a convolution, which edgeadapt does not merge"
        )
    product = (shape_b[0], shape_a[1])
    if (product[::-1] if transposed else product) != weight.shape:
        raise contents.misfit(f"{module} (B @ A)", product, weight.name, weight.shape)
    rank = contents.spec.rank_of(module)
    if rank != shape_a[0]:
        raise AdapterError(
            f"{module!r} has rank {shape_a[0]} in the adapter's tensors and {rank} in its "
            "config; the two files do not belong together"
        )
    scale = contents.spec.scaling_of(module, rank)
    return LoraKeys(a, b, rank, scale, embedding, transposed, magnitude, bias)
