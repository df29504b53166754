"""Safetensors, read and written a few rows at a time with NumPy alone.

The format (https://huggingface.co/docs/safetensors): eight bytes with the header's length, little
endian; a JSON header giving each tensor's dtype, shape and byte range; the tensors' bytes, without
holes or overlaps.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from edgeadapt.errors import CorruptFileError, InputError, UnsupportedError
from edgeadapt.files import atomic_file, read_json
from edgeadapt.weights import Float32Array, TensorInfo, row_chunks

MAX_HEADER_BYTES = 100_000_000
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
"""Size of one element of every dtype that the format knows."""

FLOATS = frozenset({"F32", "F16", "BF16"})
"""The dtypes that are read and written here."""

ReadRows = Callable[[str, int, int], Float32Array]
"""Like `WeightSource.rows`: tensor name, first row, row after the last."""


def bf16_to_float32(raw: npt.NDArray[np.uint16]) -> Float32Array:
    """Widen bfloat16 bit patterns to float32 (exact)."""
    return (raw.astype(np.uint32) << 16).view(np.float32)


def float32_to_bf16(values: Float32Array) -> npt.NDArray[np.uint16]:
    """Bit patterns of `values` rounded to bfloat16, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
    quiet_nan = (bits >> 16) | np.uint32(0x40)
    is_nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.where(is_nan, quiet_nan, rounded).astype(np.uint16)


class SafetensorsFile:
    """One file, memory-mapped; its header is checked completely when it is opened."""

    def __init__(self, path: Path) -> None:
        """Open and check a file.

        Raises:
            InputError: it cannot be read.
            CorruptFileError: it is truncated, or its header is malformed.
        """
        self.path = path
        header, self._base, data_bytes = _read_header(path)
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            raise CorruptFileError(f"{path}: __metadata__ is not an object of strings")
        self.metadata: dict[str, str] = metadata
        self._offsets: dict[str, tuple[int, int]] = {}
        self._tensors: dict[str, TensorInfo] = {}
        for name, entry in header.items():
            self._tensors[name], self._offsets[name] = _entry(path, name, entry)
        _check_layout(path, self._offsets, data_bytes)
        self._data = np.memmap(path, dtype=np.uint8, mode="r")

    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor by name, in the order of the header."""
        return self._tensors

    def rows(self, name: str, start: int, stop: int) -> Float32Array:
        """Rows [start, stop) of a tensor as a fresh float32 array, shape (stop - start, ...).

        A scalar counts as one row and comes back with shape ().

        Raises:
            UnsupportedError: the tensor is not stored as F32, F16 or BF16.
            IndexError: the rows do not exist.
        """
        info = self._tensors[name]
        if info.dtype not in FLOATS:
            raise UnsupportedError(
                f"{self.path}: tensor {name} is stored as {info.dtype}; only F32, F16 and BF16 "
                "weights are read, so save the model in one of these first"
            )
        count = info.shape[0] if info.shape else 1
        if not 0 <= start <= stop <= count:
            raise IndexError(f"{name} has {count} rows, asked for {start} to {stop}")
        row_bytes = prod(info.shape[1:]) * BITS[info.dtype] // 8
        first = self._base + self._offsets[name][0]
        raw = self._data[first + start * row_bytes : first + stop * row_bytes].tobytes()
        shape = (stop - start, *info.shape[1:]) if info.shape else ()
        return _decode(raw, info.dtype).reshape(shape)


def _decode(raw: bytes, dtype: str) -> Float32Array:
    if dtype == "F32":
        return np.frombuffer(raw, dtype="<f4").astype(np.float32)
    if dtype == "F16":
        return np.frombuffer(raw, dtype="<f2").astype(np.float32)
    return bf16_to_float32(np.frombuffer(raw, dtype="<u2"))


def _read_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """The parsed header, where the data starts, and how many bytes of data there are."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or length > size - 8 or length > MAX_HEADER_BYTES:
                raise CorruptFileError(
                    f"{path} is truncated or not a safetensors file: "
                    f"{size} bytes, header of {length if len(prefix) == 8 else 'unknown'} bytes"
                )
            raw = file.read(length)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{path}: the safetensors header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise CorruptFileError(f"{path}: the safetensors header is not a JSON object")
    return header, 8 + length, size - 8 - length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("the same name occurs twice")
    return result


def _entry(path: Path, name: str, entry: Any) -> tuple[TensorInfo, tuple[int, int]]:
    """One tensor's description and byte range, checked on its own."""

    def bad(what: str) -> NoReturn:
        raise CorruptFileError(f"{path}: tensor {name}: {what}")

    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        bad("its entry needs exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        bad(f"unknown dtype {dtype!r:.40}")
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        bad("shape and data_offsets must be lists of whole numbers >= 0")
    bits = prod(shape) * BITS[dtype]
    if bits % 8 or offsets[1] - offsets[0] != bits // 8:
        bad(f"shape {shape!r:.80} as {dtype} does not fill bytes {offsets[0]} to {offsets[1]}")
    return TensorInfo(name, tuple(shape), dtype), (offsets[0], offsets[1])


def _naturals(value: Any) -> bool:
    # 2**63 bounds the cost of multiplying a hostile shape; no file is larger
    return (
        isinstance(value, list)
        and len(value) <= 32
        and all(type(item) is int and 0 <= item < 2**63 for item in value)
    )


def _check_layout(path: Path, offsets: dict[str, tuple[int, int]], data_bytes: int) -> None:
    """Tensors must follow each other from byte 0 to the end of the file."""
    end = 0
    for name, (start, stop) in sorted(offsets.items(), key=lambda item: item[1]):
        if stop > data_bytes:
            raise CorruptFileError(
                f"{path} is truncated: tensor {name} ends at data byte {stop}, "
                f"the file holds {data_bytes}; download or save it again"
            )
        if start != end:
            word = "overlaps the tensor before it" if start < end else "leaves a hole before it"
            raise CorruptFileError(f"{path}: tensor {name} {word}")
        end = stop
    if end != data_bytes:
        raise CorruptFileError(f"{path}: {data_bytes - end} bytes at the end belong to no tensor")


def write_safetensors(
    path: Path,
    tensors: Mapping[str, TensorInfo],
    read: ReadRows,
    metadata: dict[str, str] | None = None,
) -> None:
    """Write a file atomically, holding a few rows of one tensor in memory at a time.

    Tensors are laid out by falling element size, else in the order given, so that every one
    starts at a multiple of its element size.

    Args:
        path: must not exist yet.
        tensors: shapes, and the dtype to store each in: F32, F16 or BF16 (ties to even).
        read: gives rows as float32; called in file order.
        metadata: the file's `__metadata__`; `format: pt`, which transformers asks for, if absent.

    Raises:
        InputError: `path` exists, or a value does not fit in F16.
        UnsupportedError: another dtype was asked for.
    """
    wrong = [info for info in tensors.values() if info.dtype not in FLOATS]
    if wrong:
        raise UnsupportedError(f"cannot write tensor {wrong[0].name} as {wrong[0].dtype}")
    ordered = dict(sorted(tensors.items(), key=lambda item: -BITS[item[1].dtype]))
    header: dict[str, Any] = {"__metadata__": metadata or {"format": "pt"}}
    end = 0
    for name, info in ordered.items():
        start, end = end, end + info.size * BITS[info.dtype] // 8
        header[name] = {
            "dtype": info.dtype,
            "shape": list(info.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with atomic_file(path) as partial, partial.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, info in ordered.items():
            for start, stop in row_chunks(info):
                file.write(_encode(info, stop - start, read(name, start, stop)))


def _encode(info: TensorInfo, rows: int, values: Float32Array) -> bytes:
    expected = rows * prod(info.shape[1:]) if info.shape else 1
    if values.size != expected:
        raise ValueError(f"{info.name}: got {values.size} values for {rows} rows of {info.shape}")
    if info.dtype == "F32":
        return values.astype("<f4", copy=False).tobytes()
    if info.dtype == "BF16":
        return float32_to_bf16(values).astype("<u2", copy=False).tobytes()
    with np.errstate(over="ignore"):
        halves = values.astype("<f2")
    if bool((np.isinf(halves) & np.isfinite(values)).any()):
        raise InputError(f"tensor {info.name} holds values beyond F16's 65504; use BF16 or F32")
    return halves.tobytes()


def shard_map(folder: Path) -> dict[str, str]:
    """Which safetensors file of a model folder holds which tensor.

    Returns:
        `{"": "model.safetensors"}` for a single file, whatever it holds; else what
        `model.safetensors.index.json` says: tensor name to file name. Every file exists.

    Raises:
        InputError: there are no safetensors weights, or a shard is missing.
        CorruptFileError: the index is malformed.
    """
    if (folder / SINGLE).is_file():
        return {"": SINGLE}
    index_path = folder / INDEX
    if not index_path.is_file():
        pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
        if pickled:
            raise InputError(
                f"{folder} holds only pickled weights ({pickled[0]}), which can run code when "
                "loaded and are refused; convert them to safetensors first"
            )
        raise InputError(f"{folder} has no weights; expected {SINGLE} or {INDEX}")
    index = read_json(index_path)
    placed = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(placed, dict) or not placed:
        raise CorruptFileError(f"{index_path} has no weight_map of tensor names to file names")
    for name, shard in placed.items():
        # a shard name is a plain file name: nothing outside the folder is ever opened
        if not isinstance(shard, str) or shard in ("", "..") or Path(shard).name != shard:
            raise CorruptFileError(f"{index_path}: tensor {name} lies in {shard!r:.80}, not a file")
    missing = sorted({shard for shard in placed.values() if not (folder / shard).is_file()})
    if missing:
        raise InputError(
            f"{folder} lacks {', '.join(missing)}, named in {INDEX}; download the model completely"
        )
    return placed


class SafetensorsSource:
    """A Hugging Face model folder as a `WeightSource`: one file, or shards with an index."""

    def __init__(self, folder: Path) -> None:
        """Open a folder; no tensor is read yet.

        Raises:
            InputError: config.json or the weights are missing, or only pickled ones are there.
            CorruptFileError: a file is damaged, or a shard lacks a tensor that the index names.
        """
        self.folder = folder
        config = read_json(folder / "config.json")
        if not isinstance(config, dict):
            raise CorruptFileError(f"{folder / 'config.json'} does not hold a JSON object")
        self._config: dict[str, Any] = config
        self._file_of: dict[str, SafetensorsFile] = {}
        self._tensors: dict[str, TensorInfo] = {}
        placed = shard_map(folder)
        files = {shard: SafetensorsFile(folder / shard) for shard in sorted(set(placed.values()))}
        if placed.keys() == {""}:
            placed = dict.fromkeys(files[SINGLE].tensors(), SINGLE)
        for name, shard in placed.items():
            if name not in files[shard].tensors():
                raise CorruptFileError(f"{folder / shard} lacks tensor {name}, named in {INDEX}")
            self._file_of[name] = files[shard]
            self._tensors[name] = files[shard].tensors()[name]

    @property
    def config(self) -> dict[str, Any]:
        """The folder's config.json."""
        return self._config

    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor by name, in stored order."""
        return self._tensors

    def rows(self, name: str, start: int, stop: int) -> Float32Array:
        """Rows [start, stop) as a fresh float32 array; see `SafetensorsFile.rows`."""
        return self._file_of[name].rows(name, start, stop)
