"""GGUF files, read with every count and offset checked before it is used.

The format (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): magic, version, the numbers
of tensors and of key-values, the key-values, the tensor descriptions, padding, the tensors' bytes.
`gguf.GGUFReader` trusts these numbers: a hostile file makes it loop for hours or fail oddly. What
it knows of types and sizes is used here all the same.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from edgeadapt.errors import CorruptFileError, InputError, UnsupportedError
from edgeadapt.weights import Float32Array

T = TypeVar("T")

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMENSIONS = 4
DEFAULT_ALIGNMENT = 32

_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", _BOOL: "<?",
            10: "<Q", 11: "<q", 12: "<d"}  # fmt: skip
"""struct format of every fixed-size value type."""


@dataclass(frozen=True)
class GgufTensor:
    """One tensor's description; `shape` is in NumPy order, slowest axis first."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    offset: int
    """First byte in the file."""

    @property
    def row_bytes(self) -> int:
        """Stored bytes of one row along the last axis."""
        block, size = GGML_QUANT_SIZES[self.type]
        return int(self.shape[-1] // block * size)


class GgufFile:
    """One memory-mapped file: its metadata, and its tensors as float32 rows."""

    def __init__(self, path: Path) -> None:
        """Open a file and check its header.

        Raises:
            InputError: it cannot be read.
            CorruptFileError: it is no GGUF file, truncated or malformed.
            UnsupportedError: its version, byte order or a tensor type is not known here.
        """
        self.path = path
        try:
            with path.open("rb") as file:
                head = file.read(8)
                if head[:4] != MAGIC or len(head) < 8:
                    raise CorruptFileError(f"{path} is not a GGUF file: it starts with {head!r}")
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror or error}") from error
        cursor = _Cursor(path, self._data)
        cursor.position = 4
        version = cursor.scalar("<I")
        if version not in VERSIONS:
            what = "is big-endian" if version & 0xFFFF == 0 else f"has GGUF version {version}"
            raise UnsupportedError(f"{path} {what}; little-endian versions 2 and 3 are read")
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, GgufTensor] = {}
        self._parse(cursor)

    def get(self, key: str, kind: type[T], default: T | None = None) -> T:
        """The value of a key, of type `int`, `float`, `bool`, `str` or `list`.

        Raises:
            CorruptFileError: it is of another type, or missing and there is no default.
        """
        value = self.metadata.get(key, default)
        if value is None:
            raise CorruptFileError(f"{self.path} lacks the key {key}")
        if type(value) is not kind:
            raise CorruptFileError(
                f"{self.path}: the key {key} holds {type(value).__name__}, expected {kind.__name__}"
            )
        return value

    def strings(self, key: str) -> list[str]:
        """The value of a key that is an array of strings.

        Raises:
            CorruptFileError: it is missing or something else.
        """
        values = self.get(key, list)
        if not all(isinstance(value, str) for value in values):
            raise CorruptFileError(f"{self.path}: the key {key} does not hold strings")
        return values

    def rows(self, name: str, start: int, stop: int) -> Float32Array:
        """Rows [start, stop) along the first axis, dequantized, shape (stop - start, ...).

        Raises:
            UnsupportedError: the tensor's type cannot be dequantized here.
        """
        tensor = self.tensors[name]
        if not 0 <= start <= stop <= tensor.shape[0]:
            raise IndexError(f"{name} has {tensor.shape[0]} rows, asked for {start} to {stop}")
        if len(tensor.shape) == 1:  # one row of the quantized layout: cut after dequantizing
            return self._dequantize(tensor, 0, 1).reshape(-1)[start:stop].copy()
        inner = prod(tensor.shape[1:-1])
        values = self._dequantize(tensor, start * inner, stop * inner)
        return values.reshape(stop - start, *tensor.shape[1:])

    def stored_rows(self, name: str, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Rows [start, stop) as they lie in the file, shape (stop - start, bytes of a row).

        A tensor of more axes is seen as one matrix, with its last axis as columns.
        """
        tensor = self.tensors[name]
        return np.frombuffer(
            self._data,
            dtype=np.uint8,
            count=(stop - start) * tensor.row_bytes,
            offset=tensor.offset + start * tensor.row_bytes,
        ).reshape(stop - start, tensor.row_bytes)

    def _dequantize(self, tensor: GgufTensor, start: int, stop: int) -> Float32Array:
        raw = self.stored_rows(tensor.name, start, stop)
        if tensor.type == GGMLQuantizationType.F32:
            return raw.view("<f4").astype(np.float32)
        if tensor.type == GGMLQuantizationType.F16:
            return raw.view("<f2").astype(np.float32)
        try:
            return np.asarray(dequantize(raw, tensor.type), dtype=np.float32)
        except NotImplementedError as error:
            raise UnsupportedError(
                f"{self.path}: tensor {tensor.name} is {tensor.type.name}, which cannot be "
                "dequantized here; use another quantization of the model"
            ) from error

    def _parse(self, cursor: _Cursor) -> None:
        tensor_count, key_count = cursor.scalar("<Q"), cursor.scalar("<Q")
        # every key-value takes at least 13 bytes and every tensor description 24
        if key_count * 13 + tensor_count * 24 > len(self._data):
            cursor.fail(f"claims {key_count} keys and {tensor_count} tensors, more than fit in it")
        for _ in range(key_count):
            key = cursor.string()
            if key in self.metadata:
                cursor.fail(f"holds the key {key!r:.80} twice")
            self.metadata[key] = cursor.value(cursor.scalar("<I"))
        alignment = self.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            cursor.fail(f"general.alignment is {alignment!r:.40}, not a power of two")
        described = [self._describe(cursor) for _ in range(tensor_count)]
        base = -(-cursor.position // alignment) * alignment
        for name, shape, kind, offset in described:
            if name in self.tensors:
                cursor.fail(f"holds the tensor {name!r:.80} twice")
            tensor = GgufTensor(name, shape, kind, base + offset)
            self._check(cursor, tensor, alignment)
            self.tensors[name] = tensor

    def _describe(self, cursor: _Cursor) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
        name = cursor.string()
        dimensions = cursor.scalar("<I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            cursor.fail(f"tensor {name!r:.80} has {dimensions} dimensions")
        shape = tuple(cursor.scalar("<Q") for _ in range(dimensions))[::-1]
        number = cursor.scalar("<I")
        try:
            kind = GGMLQuantizationType(number)
        except ValueError as error:
            raise UnsupportedError(
                f"{self.path}: tensor {name!r:.80} has the unknown type {number}"
            ) from error
        return name, shape, kind, cursor.scalar("<Q")

    def _check(self, cursor: _Cursor, tensor: GgufTensor, alignment: int) -> None:
        block, _ = GGML_QUANT_SIZES[tensor.type]
        if 0 in tensor.shape or tensor.shape[-1] % block or tensor.offset % alignment:
            cursor.fail(
                f"tensor {tensor.name!r:.80} of {tensor.type.name} has the impossible shape "
                f"{tensor.shape} or offset {tensor.offset}"
            )
        end = tensor.offset + prod(tensor.shape[:-1]) * tensor.row_bytes
        if end > len(self._data):
            cursor.fail(
                f"tensor {tensor.name!r:.80} ends at byte {end} of a file of {len(self._data)}; "
                "download the file again"
            )


class _Cursor:
    """A position in the file that never runs past its end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.position = 0

    def fail(self, what: str) -> NoReturn:
        raise CorruptFileError(f"{self.path} is truncated or malformed: {what}")

    def take(self, size: int) -> bytes:
        end = self.position + size
        if end > len(self.data):
            self.fail(f"{size} bytes expected at byte {self.position} of {len(self.data)}")
        raw = self.data[self.position : end]
        self.position = end
        return raw

    def scalar(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def string(self) -> str:
        start = self.position
        try:
            return self.take(self.scalar("<Q")).decode("utf-8")
        except UnicodeDecodeError as error:
            raise CorruptFileError(
                f"{self.path}: the string at byte {start} is not UTF-8"
            ) from error

    def value(self, kind: int) -> Any:
        """A key's value: a number, bool or string, or a list of one of these."""
        if kind == _STRING:
            return self.string()
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind != _ARRAY:
            self.fail(f"unknown value type {kind} at byte {self.position}")
        item, count = self.scalar("<I"), self.scalar("<Q")
        if item in _SCALARS:
            form = _SCALARS[item]
            raw = self.take(count * struct.calcsize(form))
            return [value for (value,) in struct.iter_unpack(form, raw)]
        if item != _STRING:
            self.fail(f"array of the unknown type {item} at byte {self.position}")
        if count * 8 > len(self.data) - self.position:
            self.fail(f"array of {count} strings at byte {self.position}")
        return [self.string() for _ in range(count)]
