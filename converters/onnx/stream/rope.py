"""Tables of cosines and sines for rotary positions, with the scalings that models use.

The formulas are those of transformers (`modeling_rope_utils.py`), in float32 as there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeadapt.errors import CorruptFileError, UnsupportedError
from edgeadapt.weights import Float32Array

ROPE_TYPES = ("default", "linear", "llama3", "longrope")


@dataclass(frozen=True)
class Rope:
    """How one kind of layer turns queries and keys."""

    kind: str
    theta: float
    width: int
    """Values of a head that are turned."""
    parameters: Mapping[str, Any]
    """What the scaling needs, in transformers' words."""
    context: int
    """Most positions."""

    @property
    def switches_at(self) -> int | None:
        """Positions beyond which a second table is used, if there is one."""
        if self.kind != "longrope":
            return None
        return int(self.parameters["original_max_position_embeddings"])

    def tables(self, *, long: bool = False) -> tuple[Float32Array, Float32Array]:
        """Cosines and sines, each of shape (positions, width / 2).

        Args:
            long: the second table, of longrope.
        """
        short = self.switches_at is not None and not long
        length = min(self.context, self.switches_at or 0) if short else self.context
        positions = np.arange(length, dtype=np.float32)
        angles = np.outer(positions, self._frequencies(long))
        factor = np.float32(self._attention_factor())
        return np.cos(angles) * factor, np.sin(angles) * factor

    def _frequencies(self, long: bool) -> Float32Array:
        exponents = np.arange(0, self.width, 2, dtype=np.float32) / np.float32(self.width)
        plain = (1 / np.float32(self.theta) ** exponents).astype(np.float32)
        if self.kind == "linear":
            return plain / np.float32(self.parameters["factor"])
        if self.kind == "llama3":
            return self._llama3(plain)
        if self.kind == "longrope":
            name = "long_factor" if long else "short_factor"
            factors = np.asarray(self.parameters[name], dtype=np.float32)
            if factors.shape != plain.shape:
                raise CorruptFileError(
                    f"config.json has {factors.size} values in {name}, expected {plain.size}"
                )
            return (1 / (factors * np.float32(self.theta) ** exponents)).astype(np.float32)
        return plain

    def _llama3(self, plain: Float32Array) -> Float32Array:
        """Low frequencies divided by a factor, high ones kept, those between interpolated."""
        given = self.parameters
        factor, low, high = (
            np.float32(given[name]) for name in ("factor", "low_freq_factor", "high_freq_factor")
        )
        old = np.float32(given["original_max_position_embeddings"])
        wavelength = np.float32(2 * math.pi) / plain
        smooth = np.clip((old / wavelength - low) / (high - low), 0, 1)
        mixed = (1 - smooth) * plain / factor + smooth * plain
        return np.where(
            wavelength > old / low, plain / factor, np.where(wavelength < old / high, plain, mixed)
        ).astype(np.float32)

    def _attention_factor(self) -> float:
        """LongRoPE's scale of both tables (https://arxiv.org/abs/2402.13753)."""
        if self.kind != "longrope":
            return 1.0
        given = self.parameters.get("attention_factor")
        if given is not None:
            return float(given)
        original = int(self.parameters["original_max_position_embeddings"])
        scale = self.parameters.get("factor") or self.context / original
        return 1.0 if scale <= 1 else math.sqrt(1 + math.log(scale) / math.log(original))


def ropes(config: Mapping[str, Any], head_size: int, kinds: Sequence[str]) -> dict[str, Rope]:
    """The rotary tables of each kind of layer, such as `full_attention`.

    Raises:
        UnsupportedError: a scaling that is not among `ROPE_TYPES`.
        CorruptFileError: a scaling lacks one of its parameters.
    """
    return {kind: _rope(config, head_size, kind) for kind in kinds}


def _rope(config: Mapping[str, Any], head_size: int, kind: str) -> Rope:
    given = _parameters(config, kind)
    # older configs keep the first two beside the scaling, and call its type `type`
    outer = ("partial_rotary_factor", "original_max_position_embeddings", "rope_theta")
    parameters = {key: config[key] for key in outer if config.get(key) is not None} | given
    name = str(given.get("rope_type") or given.get("type") or "default")
    name = "longrope" if name == "su" else name
    if name not in ROPE_TYPES:
        raise UnsupportedError(
            f"the ONNX export does not handle rotary scaling of type {name}; "
            f"it handles {', '.join(ROPE_TYPES)}"
        )
    width = int(head_size * float(parameters.get("partial_rotary_factor") or 1.0))
    rope = Rope(
        name,
        float(parameters.get("rope_theta") or 10000.0),
        width,
        parameters,
        int(config["max_position_embeddings"]),
    )
    try:
        rope.tables() if rope.context <= 4096 else rope._frequencies(False)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(
            f"config.json has a rotary scaling of type {name} without {error}"
        ) from error
    return rope


def _parameters(config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The scaling of one kind of layer: flat, one for each kind, or in the words of old configs."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise CorruptFileError(f"config.json has rotary scaling {rope!r}, expected an object")
    if isinstance(rope.get(kind), dict):
        return dict(rope[kind])
    if kind == "sliding_attention" and config.get("rope_local_base_freq"):
        return {"rope_theta": config["rope_local_base_freq"]}  # Gemma 3 before transformers 5
    return {key: value for key, value in rope.items() if not isinstance(value, dict)}
