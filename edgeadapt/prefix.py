"""A trained prefix as a file of its own: the KV cache that a model starts from.

A safetensors file. For each layer two tensors of shape (KV heads, tokens, head size), float32:
`layers.I.key`, as attention sees it (a rotation, if there is one, has been applied), and
`layers.I.value`; in the order of dimensions that transformers uses. The metadata say `kind:
edgeadapt-prefix`, `schema_version`, as `base_sha256` for which base it was trained, and as `system`
under which system prompt, if under one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeadapt.errors import AdapterError, InputError, UnsupportedError
from edgeadapt.safetensors_io import SafetensorsFile, write_safetensors
from edgeadapt.weights import Float32Array, TensorInfo, read_tensor

SUFFIX = ".safetensors"
RUNTIMES = ("llama-cpp", "onnxruntime")
"""Those that take an initial KV cache from such a file; torch takes the PEFT folder itself."""

_KIND, _SCHEMA = "edgeadapt-prefix", "1"


@dataclass(frozen=True)
class Prefix:
    """Keys and values of the first positions, each of shape (layers, KV heads, tokens, size)."""

    keys: Float32Array
    values: Float32Array
    base: str | None = None
    """SHA-256 of the base that it was trained for."""
    system: str | None = None
    """The system prompt that it was trained under."""

    @property
    def tokens(self) -> int:
        """Positions that it takes."""
        return int(self.keys.shape[2])

    def check(self, layers: int, heads: int, size: int, room: int) -> None:
        """See that it fits a model and its context.

        Raises:
            AdapterError: it was made for another model.
            InputError: it leaves no room.
        """
        found = (self.keys.shape[0], self.keys.shape[1], self.keys.shape[3])
        if found != (layers, heads, size):
            raise AdapterError(
                f"the prefix has (layers, KV heads, head size) = {found}, and the model "
                f"{(layers, heads, size)}: it was trained for another base"
            )
        if self.tokens >= room:
            raise InputError(
                f"the prefix takes {self.tokens} positions of a context of {room}; raise --context"
            )

    def check_artifact(self, lineage: Mapping[str, Any]) -> None:
        """See that an artifact is of the base that this was trained for, as far as both tell.

        Raises:
            AdapterError: it is not.
        """
        base = (lineage.get("base") or {}).get("sha256")
        if self.base is not None and base is not None and base != self.base:
            raise AdapterError(
                f"the prefix was trained for a base with sha256 {self.base[:12]}..., and the "
                f"artifact was made from {base[:12]}...; export that base"
            )
        beside = lineage.get("mode") == "separate"  # its graph takes adapters, and has none in it
        if not beside and (lineage.get("adapter") or lineage.get("adapters")):
            raise AdapterError(
                "the prefix was trained for the plain base, and the artifact has an adapter merged "
                "in; export the base alone"
            )


def is_prefix(path: Path) -> bool:
    """Whether a path is one for a prefix, by its name."""
    return path.suffix == SUFFIX


def write_prefix(prefix: Prefix, out: Path) -> None:
    """Write the file, whole or not at all.

    Raises:
        InputError: `out` exists, or is not called *.safetensors.
    """
    if not is_prefix(out):
        raise InputError(f"a prefix is written as {SUFFIX}; end --out with it, found {out.name}")
    arrays = {
        f"layers.{layer}.{kind}": stacked[layer]
        for kind, stacked in (("key", prefix.keys), ("value", prefix.values))
        for layer in range(len(stacked))
    }
    infos = {name: TensorInfo(name, array.shape, "F32") for name, array in arrays.items()}
    told = {"base_sha256": prefix.base, "system": prefix.system}
    metadata = {"kind": _KIND, "schema_version": _SCHEMA} | {
        name: value for name, value in told.items() if value
    }
    write_safetensors(out, infos, lambda name, start, stop: arrays[name][start:stop], metadata)


def read_prefix(path: Path) -> Prefix:
    """Read a file.

    Raises:
        InputError: it is missing, or no prefix.
        CorruptFileError: it is damaged.
        AdapterError: it holds numbers that are not finite.
    """
    file = _checked(path)
    layers = len(file.tensors()) // 2
    keys, values = (
        np.stack([read_tensor(file, f"layers.{layer}.{kind}") for layer in range(layers)])
        for kind in ("key", "value")
    )
    if not (np.isfinite(keys).all() and np.isfinite(values).all()):
        raise AdapterError(f"{path} holds NaN or infinite values")
    return Prefix(keys, values, file.metadata.get("base_sha256"), file.metadata.get("system"))


def prefix_system(path: Path) -> str | None:
    """The system prompt that a prefix was trained under, without reading its numbers.

    Raises:
        InputError, CorruptFileError: as `read_prefix`.
    """
    return _checked(path).metadata.get("system")


def _checked(path: Path) -> SafetensorsFile:
    if not path.is_file():
        raise InputError(f"the prefix {path} does not exist")
    file = SafetensorsFile(path)
    found = file.tensors()
    expected = {
        f"layers.{layer}.{kind}" for layer in range(len(found) // 2) for kind in ("key", "value")
    }
    shapes = {info.shape for info in found.values()}
    known = file.metadata.get("kind") == _KIND and file.metadata.get("schema_version") == _SCHEMA
    one = next(iter(shapes)) if len(shapes) == 1 else ()
    if not known or set(found) != expected or len(one) != 3 or 0 in one:
        raise InputError(
            f"{path} is no prefix of this edgeadapt; make one from a trained prefix with "
            "edgeadapt export --adapter-mode separate"
        )
    return file


def runtimes_beside(names: Sequence[str], adapter: Path | None) -> tuple[str, ...]:
    """Those of some runtimes that can start from a prefix; all, where the adapter is none.

    Raises:
        UnsupportedError: none of them can.
    """
    if adapter is None or not is_prefix(adapter):
        return tuple(names)
    fitting = tuple(name for name in names if name in RUNTIMES)
    if not fitting:
        raise refuse_prefix(adapter, names[0])
    return fitting


def refuse_prefix(path: Path, runtime: str) -> UnsupportedError:
    """The error of a runtime that cannot start from a KV cache."""
    return UnsupportedError(
        f"{runtime} cannot start from the KV cache in {path}; {' and '.join(RUNTIMES)} can, and "
        "torch with the PEFT folder"
    )
