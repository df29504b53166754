"""ggml's own quantization, called through ctypes.

Any block that this writes is by construction the block that llama-quantize writes. The shared
library is the one that llama-cpp-python installs; its Python package is not imported (that costs
a second and starts the backends).
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from edgeadapt.errors import CorruptFileError, MissingExtraError, RuntimeFailure
from edgeadapt.weights import Float32Array

_LIBRARY = {"darwin": "libggml-base.dylib", "win32": "ggml-base.dll"}


class _TypeTraits(ctypes.Structure):
    """`struct ggml_type_traits` of ggml.h, up to the function that is called here."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


@functools.cache
def _ggml() -> ctypes.CDLL:
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError("llama_cpp", "llama-cpp", "quantizing to GGUF")
    folder = Path(spec.submodule_search_locations[0]) / "lib"
    path = folder / _LIBRARY.get(sys.platform, "libggml-base.so")
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise RuntimeFailure(
            f"cannot load {path.name} of llama-cpp-python ({error}); "
            "type: edgeadapt setup llama-cpp --rebuild"
        ) from error
    pointer = ctypes.c_void_p
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, pointer, pointer, *[ctypes.c_int64] * 3, pointer,
    ]  # fmt: skip
    library.ggml_get_type_traits.restype = ctypes.POINTER(_TypeTraits)
    library.ggml_get_type_traits.argtypes = [ctypes.c_int]
    library.ggml_validate_row_data.restype = ctypes.c_bool
    library.ggml_validate_row_data.argtypes = [ctypes.c_int, pointer, ctypes.c_size_t]
    return library


def row_bytes(kind: GGMLQuantizationType, columns: int) -> int:
    """Bytes of one row of `columns` values; `columns` is a multiple of the block size."""
    block, size = GGML_QUANT_SIZES[kind]
    return int(columns // block * size)


def quantize_rows(
    rows: Float32Array, kind: GGMLQuantizationType, importance: Float32Array | None = None
) -> npt.NDArray[np.uint8]:
    """Rows in ggml's block format. Releases the GIL while ggml works.

    Args:
        rows: shape (rows, columns), C-contiguous.
        kind: any type that ggml quantizes to, F32, F16 and BF16 among them.
        importance: weight of each column, shape (columns,), for types that use one.

    Raises:
        CorruptFileError: the rows hold NaN or infinite values, or become so in this type.
    """
    _check_finite(rows)
    count, columns = rows.shape
    if importance is not None and (
        importance.shape != (columns,) or importance.dtype != rows.dtype
    ):
        raise ValueError(f"importance is {importance.dtype} {importance.shape}, not ({columns},)")
    out = np.empty(count * row_bytes(kind, columns), dtype=np.uint8)
    ggml = _ggml()
    written = ggml.ggml_quantize_chunk(
        int(kind),
        rows.ctypes.data,
        out.ctypes.data,
        0,
        count,
        columns,
        None if importance is None else importance.ctypes.data,
    )
    if written != out.size or not ggml.ggml_validate_row_data(int(kind), out.ctypes.data, out.size):
        raise CorruptFileError(
            f"the weights do not fit into {kind.name}: values overflow to infinity; "
            "choose another quantization"
        )
    return out


def dequantize_rows(
    data: npt.NDArray[np.uint8], kind: GGMLQuantizationType, columns: int
) -> Float32Array:
    """What ggml reads out of its blocks, shape (rows, columns). Releases the GIL.

    Args:
        data: whole rows as `quantize_rows` makes them.
        kind: their type.
        columns: values in a row.
    """
    rows = np.empty((data.size // row_bytes(kind, columns), columns), dtype=np.float32)
    if kind == GGMLQuantizationType.F32:  # the one type that has no such function
        rows[:] = data.view(np.float32).reshape(rows.shape)
    else:
        traits = _ggml().ggml_get_type_traits(int(kind)).contents
        traits.to_float(data.ctypes.data, rows.ctypes.data, rows.size)
    return rows


def _check_finite(rows: Float32Array) -> None:
    """A sum is finite unless a value is not (or the sum overflows: then look at each)."""
    with np.errstate(over="ignore", invalid="ignore"):
        total = rows.sum(dtype=np.float32)
    if not np.isfinite(total) and not np.isfinite(rows).all():
        raise CorruptFileError("the weights hold NaN or infinite values; the model is damaged")
