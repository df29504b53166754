"""The base as QLoRA held it while the adapter was trained: some layers in 4 bits."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgeadapt.adapters.four_bit import BLOCK, eight_bit, magnitudes, round_trip
from edgeadapt.adapters.spec import AdapterSpec
from edgeadapt.errors import AdapterError, InputError, UnsupportedError
from edgeadapt.safetensors_io import bf16_to_float32, float32_to_bf16
from edgeadapt.weights import Float32Array, TensorInfo, WeightSource, row_chunks

HELD_AS = ("nf4", "nf4-double", "fp4", "fp4-double")
"""4-bit formats of bitsandbytes, without and with double quantization."""

_IN_A_LAYER = re.compile(r"(^|\.)(layers|h|blocks)\.\d+\..+\.weight$")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


@dataclass(frozen=True)
class HeldBase:
    """How training held the weights of a base."""

    format: str
    """One of `HELD_AS`."""
    dtype: str = "float32"
    """Of the weights before they were quantized, and of what they are dequantized to."""
    layers: tuple[str, ...] | None = None
    """Names of the layers that were quantized; unknown, all linear ones but the head."""

    def record(self) -> dict[str, Any]:
        """As JSON, for lineage; without the names of all layers."""
        return {"format": self.format, "dtype": self.dtype}


def held_base(specs: Sequence[AdapterSpec], stated: str | None = None) -> HeldBase | None:
    """How the base was held while adapters were trained; None if in floating point.

    Args:
        specs: the adapters that are merged together.
        stated: what the user says; needed where an adapter's record does not tell.

    Raises:
        AdapterError: the adapters disagree, or one's record contradicts what is stated.
        InputError: nothing tells, or the format is unknown.
    """
    found = [_held(spec, stated) for spec in specs]
    if any(held != found[0] for held in found):
        raise AdapterError(
            "the adapters were trained on bases that were held in different ways, so no one base "
            "is theirs; give --merge-onto original"
        )
    return found[0]


def tells(spec: AdapterSpec) -> bool:
    """Whether the adapter's record says how its base was held."""
    return "quantization" in spec.record


def _held(spec: AdapterSpec, stated: str | None) -> HeldBase | None:
    if stated is not None and stated not in (*HELD_AS, "none"):
        raise InputError(f"{stated!r} is unknown; a base is held as {', '.join(HELD_AS)} or none")
    if not tells(spec):
        if stated is None:
            raise InputError(
                f"the adapter {spec.path} has no record of its training, so how its base was "
                f"quantized is unknown; say it with --trained-on {'|'.join(HELD_AS)}, or none"
            )
        return None if stated == "none" else HeldBase(stated)
    recorded = str(spec.record["quantization"])
    if stated is not None and stated != (recorded if recorded in HELD_AS else "none"):
        raise AdapterError(
            f"the adapter {spec.path} records that its base was held as {recorded}, not {stated}; "
            "leave --trained-on out"
        )
    if recorded not in HELD_AS:
        return None
    more: Mapping[str, Any] = spec.record.get("held") or {}
    # Records without more are of an edgeadapt that took double quantization on CUDA alone.
    dtype = "bfloat16" if recorded.endswith("-double") else "float32"
    layers = more.get("layers")
    return HeldBase(
        recorded, str(more.get("dtype") or dtype), None if layers is None else tuple(layers)
    )


class HeldSource:
    """A base whose linear layers went through 4 bits and back, row by row.

    What bitsandbytes' `dequantize_4bit` gives, number for number; with double quantization up to
    the rounding of the magnitudes' mean. Blocks run across rows, so a few more weights than
    asked for are read where a row is no multiple of 64 long.
    """

    def __init__(self, base: WeightSource, held: HeldBase) -> None:
        """Find the layers; nothing is read yet.

        Raises:
            AdapterError: the base lacks a layer that training quantized.
            UnsupportedError: which layers were quantized is unknown and cannot be told.
        """
        self.base = base
        self.held = held
        self._kind, _, double = held.format.partition("-")
        self._double = bool(double)
        self.layers = frozenset(_layers(base, held))
        self._infos = {
            name: replace(info, dtype="F32") if name in self.layers else info
            for name, info in base.tensors().items()
        }
        self._scales = functools.lru_cache(maxsize=8)(self._all_scales)

    @property
    def config(self) -> dict[str, Any]:
        """The base's."""
        return self.base.config

    def tensors(self) -> dict[str, TensorInfo]:
        """The base's, quantized layers as F32."""
        return self._infos

    def rows(self, name: str, start: int, stop: int) -> Float32Array:
        """Rows [start, stop) as they were while training."""
        if name not in self.layers:
            return self.base.rows(name, start, stop)
        info = self._infos[name]
        width = info.size // info.shape[0]
        first = start * width // BLOCK * BLOCK
        last = min(-(-stop * width // BLOCK) * BLOCK, info.size)
        top, bottom = first // width, -(-last // width)
        flat = self._loaded(name, top, bottom)[first - top * width : last - top * width]
        scales = self._scales(name)[first // BLOCK : -(-last // BLOCK)] if self._double else None
        values = _rounded(round_trip(flat, self._kind, scales), self.held.dtype)
        shape = (stop - start, *info.shape[1:])
        return values[start * width - first : stop * width - first].reshape(shape)

    def _loaded(self, name: str, start: int, stop: int) -> Float32Array:
        """Rows of the base in the type that training loaded them in, flat."""
        return _rounded(self.base.rows(name, start, stop).reshape(-1), self.held.dtype)

    def _all_scales(self, name: str) -> Float32Array:
        """The magnitudes of all blocks of a tensor, after double quantization."""
        info = self._infos[name]
        width = info.size // info.shape[0]
        parts, left = [], np.empty(0, np.float32)
        for start, stop in row_chunks(replace(info, shape=(info.shape[0], width))):
            values = np.concatenate([left, self._loaded(name, start, stop)])
            whole = len(values) // BLOCK * BLOCK
            parts.append(magnitudes(values[:whole]))
            left = values[whole:]
        if len(left):
            parts.append(magnitudes(left))
        return eight_bit(np.concatenate(parts))


def _layers(base: WeightSource, held: HeldBase) -> list[str]:
    tensors = base.tensors()
    if held.layers is not None:
        names = [f"{layer}.weight" for layer in held.layers]
        if missing := [name for name in names if name not in tensors]:
            raise AdapterError(
                f"training quantized {missing[0]!r}, which the base does not have; give the base "
                "that the adapter was trained on"
            )
        return names
    if any(base.config.get(key) for key in _EXPERTS):
        raise UnsupportedError(
            "which layers of a model with experts were quantized depends on the version of "
            "transformers that trained the adapter, and nothing records it; give --merge-onto "
            "original"
        )
    return [
        name for name, info in tensors.items() if len(info.shape) == 2 and _IN_A_LAYER.search(name)
    ]


def _rounded(values: Float32Array, dtype: str) -> Float32Array:
    """Values rounded to a 16-bit type, as float32."""
    if dtype == "bfloat16":
        return bf16_to_float32(float32_to_bf16(values))
    if dtype == "float16":
        return values.astype(np.float16).astype(np.float32)
    return values
