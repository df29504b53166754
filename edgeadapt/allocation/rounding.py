"""What a tensor's values become when the file stores them, without a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from gguf.constants import GGMLQuantizationType

from edgeadapt.allocation.matrices import Matrix
from edgeadapt.allocation.torch_weights import Place
from edgeadapt.converters.gguf.ggml import dequantize_rows, quantize_rows
from edgeadapt.converters.gguf.imatrix import Imatrix
from edgeadapt.extras import need
from edgeadapt.weights import Float32Array, WeightSource, row_chunks

_PIECE = 1 << 20
"""Bytes of float32 that a thread works on."""


def rounded(
    rows: Float32Array, kind: GGMLQuantizationType, importance: Float32Array | None
) -> Float32Array:
    """Rows as a runtime reads them back, shape (rows, columns). Releases the GIL.

    Args:
        rows: of one matrix, in any order: each row is quantized by itself.
        kind: the type to store them as.
        importance: weight of each column, shape (columns,).
    """
    return dequantize_rows(quantize_rows(rows, kind, importance), kind, rows.shape[1])


def round_matrices(
    model: Any,
    source: WeightSource,
    places: Mapping[str, Place],
    types: Mapping[str, GGMLQuantizationType],
    matrices: Sequence[Matrix],
    imatrix: Imatrix,
    threads: int,
) -> None:
    """Give a loaded model's matrices the values that they have when stored as these types.

    Args:
        model: a transformers module; changed in place.
        source: the unrounded weights.
        places: of the checkpoint's tensors in the model.
        types: by llama.cpp's name.
        matrices: which to round.
        imatrix: what the quantizers weigh columns by.
        threads: how many pieces at once.
    """
    torch = need("torch", "measuring what rounding costs")
    parameters = dict(model.named_parameters())

    def one(piece: _Piece) -> None:
        place = places[piece.name]
        rows = source.rows(piece.name, piece.start, piece.stop)
        rows = rounded(rows, piece.kind, piece.importance)
        view = place.of(parameters[place.parameter].data)
        view[piece.start : piece.stop] = torch.from_numpy(rows)

    with ThreadPoolExecutor(threads) as pool:
        for matrix in matrices:
            list(pool.map(one, _pieces(matrix, types[matrix.name], source, imatrix)))


@dataclass(frozen=True)
class _Piece:
    """Rows [start, stop) of a checkpoint's tensor."""

    name: str
    start: int
    stop: int
    kind: GGMLQuantizationType
    importance: Float32Array | None


def _pieces(
    matrix: Matrix, kind: GGMLQuantizationType, source: WeightSource, imatrix: Imatrix
) -> Iterator[_Piece]:
    plan, infos = matrix.plan, source.tensors()
    importance = imatrix.importance(plan.name, plan.shape)
    for number, part in enumerate(plan.parts):
        weights = None
        if importance is not None:
            weights = importance[number if len(plan.shape) == 3 else 0]
        for start, stop in row_chunks(infos[part.name], _PIECE):
            first, last = max(start, part.start), min(stop, part.stop)
            if first < last:
                yield _Piece(part.name, first, last, kind, weights)
