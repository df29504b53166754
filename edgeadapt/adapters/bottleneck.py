"""Gated bottlenecks beside the feed-forward blocks, and how they become part of them.

With x the block's input, a gated block computes D (act(G x) * (U x)). A bottleneck of the same
form in parallel adds D' (act(G' x) * (U' x)), so that both together are one block with the rows of
G' and U' below those of G and U, and the columns of D' beside those of D. Any runtime computes it,
and needs to know nothing of adapters.

The hidden width grows to a multiple of a super-block of the K-quantizations, which share scales
along it: the new columns of D then lie in super-blocks of their own, and zeros fill up the last.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgeadapt.adapters.contents import read_finite
from edgeadapt.adapters.spec import WEIGHTS, AdapterSpec
from edgeadapt.errors import AdapterError, UnsupportedError
from edgeadapt.safetensors_io import SafetensorsFile
from edgeadapt.weights import Float32Array, TensorInfo, WeightSource

PEFT_TYPE = "ADAPTER"
"""In adapter_config.json; PEFT itself has no such method."""
SUPER_BLOCK = 256
PARTS = ("gate", "up", "down")
MODULE = "adapter"
"""Name of the bottleneck in its block, in the file as in torch."""

_KEY = re.compile(rf"^(?:base_model\.model\.)?(?P<block>.+)\.{MODULE}\.(?P<part>\w+)\.weight$")
_BLOCK = re.compile(r"^(?P<block>.+)\.(?:gate_proj|gate_up_proj)\.weight$")

ReadRows = Callable[[int, int], Float32Array]


def filling_width(intermediate: int) -> int:
    """The width that leaves no zeros: up to the next multiple of a super-block."""
    return SUPER_BLOCK - intermediate % SUPER_BLOCK


def padded_width(intermediate: int, width: int) -> int:
    """What a block's hidden width becomes."""
    return -(-(intermediate + width) // SUPER_BLOCK) * SUPER_BLOCK


def gated_blocks(source: WeightSource) -> list[str]:
    """Full names of the feed-forward blocks that can be widened.

    Raises:
        UnsupportedError: there are none, or there are experts.
    """
    names = source.tensors()
    blocks = [found["block"] for name in names if (found := _BLOCK.match(name))]
    if any(".experts." in name for name in names):
        raise UnsupportedError(
            "the method adapter widens the feed-forward block of each layer, and this model has "
            "several experts there; train it with --method lora"
        )
    if not blocks:
        raise UnsupportedError(
            "the method adapter widens gated feed-forward blocks (gate_proj, up_proj, down_proj), "
            "and this model has none; train it with --method lora"
        )
    return blocks


@dataclass(frozen=True)
class _Rows:
    """A stretch of a tensor's rows; zeros where nothing is read."""

    count: int
    read: ReadRows | None = None


class WiderSource:
    """The base, with a bottleneck in each of its feed-forward blocks; see the module.

    It is as before training: the bottlenecks are zeros, and add nothing.
    """

    def __init__(self, base: WeightSource, width: int) -> None:
        """Find the blocks; nothing is read yet.

        Args:
            base: what to widen.
            width: of the bottlenecks.

        Raises:
            UnsupportedError: the base has no gated feed-forward blocks.
        """
        self.base = base
        self._infos = dict(base.tensors())
        self._parts: dict[str, dict[str, tuple[int, int]]] = {}
        """Shapes of each block's bottleneck: of the gate, up and down part."""
        self._stretches: dict[str, tuple[_Rows, ...]] = {}
        self._columns: dict[str, str] = {}
        blocks = gated_blocks(base)
        for block in blocks:
            self._widen(block, width)
        wide = self._infos[f"{blocks[0]}.down_proj.weight"].shape[1]
        self._config = dict(base.config) | {"intermediate_size": wide}

    @property
    def config(self) -> dict[str, Any]:
        """The base's config, with the larger `intermediate_size`."""
        return self._config

    @property
    def changed(self) -> frozenset[str]:
        """Tensors that are not the base's."""
        return frozenset(self._stretches) | frozenset(self._columns)

    @property
    def replaced(self) -> frozenset[str]:
        """Tensors of which the adapter holds a copy: none."""
        return frozenset()

    def tensors(self) -> dict[str, TensorInfo]:
        """Names and shapes; widened tensors count as F32."""
        return self._infos

    def rows(self, name: str, start: int, stop: int) -> Float32Array:
        """Rows [start, stop), of a widened tensor put together now."""
        if name in self._stretches:
            return self._stacked(name, start, stop)
        rows = self.base.rows(name, start, stop)
        if name not in self._columns:
            return rows
        wide = np.zeros((len(rows), self._infos[name].shape[1]), np.float32)
        added = self._part(self._columns[name], "down")[start:stop]
        wide[:, : rows.shape[1]] = rows
        wide[:, rows.shape[1] : rows.shape[1] + added.shape[1]] = added
        return wide

    def _part(self, block: str, part: str) -> Float32Array:
        """A whole tensor of a bottleneck."""
        return np.zeros(self._parts[block][part], np.float32)

    def _stacked(self, name: str, start: int, stop: int) -> Float32Array:
        result = np.zeros((stop - start, *self._infos[name].shape[1:]), np.float32)
        first = 0
        for stretch in self._stretches[name]:
            low, high = max(start, first), min(stop, first + stretch.count)
            if low < high and stretch.read is not None:
                result[low - start : high - start] = stretch.read(low - first, high - first)
            first += stretch.count
        return result

    def _widen(self, block: str, width: int) -> None:
        down, fused = f"{block}.down_proj.weight", f"{block}.gate_up_proj.weight"
        if down not in self._infos:
            raise UnsupportedError(f"the base has no {down!r}, so its block cannot be widened")
        outputs, before = self._infos[down].shape
        first = fused if fused in self._infos else f"{block}.gate_proj.weight"
        inputs = self._infos[first].shape[1]
        self._parts[block] = {
            "gate": (width, inputs), "up": (width, inputs), "down": (outputs, width),
        }  # fmt: skip
        zeros = padded_width(before, width) - before - width
        self._columns[down] = block
        self._resize(down, (outputs, before + width + zeros))
        added = {
            part: (_Rows(width, functools.partial(self._part_rows, block, part)), _Rows(zeros))
            for part in ("gate", "up")
        }
        if fused in self._infos:
            self._stack(fused, before, added["gate"], added["up"])
        else:
            self._stack(f"{block}.gate_proj.weight", before, added["gate"])
            self._stack(f"{block}.up_proj.weight", before, added["up"])
        for name, halves in (("gate_proj", 1), ("up_proj", 1), ("gate_up_proj", 2)):
            if (bias := f"{block}.{name}.bias") in self._infos:
                self._stack(bias, before, *[(_Rows(width + zeros),)] * halves)

    def _part_rows(self, block: str, part: str, start: int, stop: int) -> Float32Array:
        return self._part(block, part)[start:stop]

    def _stack(self, name: str, before: int, *added: tuple[_Rows, ...]) -> None:
        """Put stretches below each part of `before` rows of a tensor of the base."""
        stretches: list[_Rows] = []
        for number, below in enumerate(added):
            own = functools.partial(self._base_rows, name, number * before)
            stretches += [_Rows(before, own), *below]
        self._stretches[name] = tuple(stretches)
        rows = sum(stretch.count for stretch in stretches)
        self._resize(name, (rows, *self._infos[name].shape[1:]))

    def _base_rows(self, name: str, offset: int, start: int, stop: int) -> Float32Array:
        return self.base.rows(name, offset + start, offset + stop)

    def _resize(self, name: str, shape: tuple[int, ...]) -> None:
        self._infos[name] = replace(self._infos[name], shape=shape, dtype="F32")


class BottleneckSource(WiderSource):
    """The base, with the bottlenecks of a trained adapter."""

    def __init__(self, base: WeightSource, spec: AdapterSpec, *, weight: float = 1.0) -> None:
        """Match the adapter's tensors to the base's blocks; none is read yet.

        Args:
            base: what to widen.
            spec: the adapter.
            weight: a factor on what the bottlenecks add.

        Raises:
            AdapterError: the adapter does not fit this base.
            CorruptFileError: its file is damaged.
            UnsupportedError: the base has no gated feed-forward blocks.
        """
        super().__init__(base, spec.r)
        self.spec = spec
        self._weight = np.float32(weight)
        self._file = SafetensorsFile(spec.path / WEIGHTS)
        self._keys = self._keys_by_block()
        self._check_fit()
        self._whole = functools.lru_cache(maxsize=2)(functools.partial(read_finite, self._file))

    def _part(self, block: str, part: str) -> Float32Array:
        values = self._whole(self._keys[block][part])
        return values * self._weight if part == "down" else values

    def _keys_by_block(self) -> dict[str, dict[str, str]]:
        keys: dict[str, dict[str, str]] = {}
        for key in self._file.tensors():
            found = _KEY.match(key)
            if found is None or found["part"] not in PARTS:
                raise AdapterError(
                    f"{self._file.path} holds {key!r}, which is no part of a bottleneck"
                )
            keys.setdefault(found["block"], {})[found["part"]] = key
        return keys

    def _check_fit(self) -> None:
        """See that each block has its bottleneck, of the right shapes, and that none is left."""
        trained_on = f"it was trained on {self.spec.base_model or 'another base'}"
        if unknown := sorted(self._keys.keys() - self._parts.keys()):
            raise AdapterError(
                f"the adapter widens {unknown[0]!r}, which the base does not have; {trained_on}: "
                "give that base"
            )
        for block, shapes in self._parts.items():
            if set(self._keys.get(block, {})) != set(PARTS):
                raise AdapterError(
                    f"the adapter has no complete bottleneck for {block!r}: expected "
                    f"{', '.join(PARTS)}; {trained_on}: give that base"
                )
            for part, shape in shapes.items():
                key = self._keys[block][part]
                if (given := self._file.tensors()[key].shape) != shape:
                    raise AdapterError(
                        f"the adapter's {key} has shape {given}, but {shape} is expected for this "
                        f"base; {trained_on}"
                    )


def growth(config: Mapping[str, Any], width: int, blocks: int) -> tuple[int, int]:
    """Weights that a bottleneck of this width trains, and those that it adds to what is stored."""
    hidden, intermediate = int(config["hidden_size"]), int(config["intermediate_size"])
    stored = padded_width(intermediate, width) - intermediate
    return 3 * hidden * width * blocks, 3 * hidden * stored * blocks
