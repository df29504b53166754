"""Tensors into the file: read, merge, quantize and write, a chunk of rows at a time.

Chunks are worked on by several threads (NumPy and ggml release the GIL) and written in order.
Only so many bytes are alive at once, so memory does not grow with the model.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from edgeadapt.console import Advance
from edgeadapt.converters.gguf.ggml import quantize_rows
from edgeadapt.converters.gguf.layout import Part, Placed, padded
from edgeadapt.errors import CorruptFileError
from edgeadapt.weights import Float32Array, WeightSource

Bytes = npt.NDArray[np.uint8]

_USUAL_CHUNK = 4 << 20
"""Bytes of float32 for which memory is planned, chunk by chunk, where none is larger."""

_MOST_CHUNKS = 256
"""Alive at once; a bound for models of many tiny tensors."""


def write_parts(
    parts: Sequence[Part],
    paths: Sequence[Path],
    source: WeightSource,
    threads: int,
    advance: Advance,
) -> None:
    """Write each part to its path: header, then every tensor's data in order.

    Raises:
        CorruptFileError: a tensor holds NaN or infinite values, or has another size than declared.
    """
    tensors = [tensor for part in parts for tensor in part.tensors]
    with contextlib.closing(_quantized(tensors, source, threads)) as chunks:
        for part, path in zip(parts, paths, strict=True):
            with path.open("wb") as file:
                file.write(part.header)
                for tensor in part.tensors:
                    _write_tensor(file, tensor, chunks, advance)


def _write_tensor(
    file: BinaryIO, tensor: Placed, chunks: Iterator[tuple[Placed, Bytes]], advance: Advance
) -> None:
    left = tensor.nbytes
    while left > 0:
        owner, data = next(chunks, (None, None))
        if owner is not tensor or data is None or data.size > left:
            raise CorruptFileError(
                f"{tensor.plan.name} does not have the size of its shape {tensor.plan.shape}"
            )
        file.write(data.data)
        left -= data.size
        advance(data.size)
    file.write(bytes(padded(tensor.nbytes) - tensor.nbytes))


def in_flight(tensors: Sequence[Placed], threads: int) -> int:
    """Most bytes of float32 that are alive at once.

    More than the threads need at a time, since types differ: one chunk in Q4_K takes as long as
    twenty in Q5_0, and all of a layer's others should be under way beside it.
    """
    largest = max((tensor.plan.largest_chunk for tensor in tensors), default=0)
    return (2 * threads + 1) * max(largest, _USUAL_CHUNK)


def _quantized(
    tensors: Sequence[Placed], source: WeightSource, threads: int
) -> Generator[tuple[Placed, Bytes], None, None]:
    """Chunks of all tensors in order, a bounded number of bytes under way."""
    pending: deque[tuple[Placed, Future[Bytes], int]] = deque()
    room = in_flight(tensors, threads)

    def oldest() -> tuple[Placed, Bytes]:
        nonlocal room
        tensor, future, size = pending.popleft()
        room += size
        return tensor, future.result()

    with ThreadPoolExecutor(threads) as pool:
        try:
            for tensor in tensors:
                for start, stop in tensor.plan.chunks():
                    size = tensor.plan.chunk_bytes(start, stop)
                    while pending and (size > room or len(pending) >= _MOST_CHUNKS):
                        yield oldest()
                    room -= size
                    job = pool.submit(_one, tensor, source, start, stop)
                    pending.append((tensor, job, size))
            while pending:
                yield oldest()
        finally:
            for _, future, _ in pending:
                future.cancel()


def _one(tensor: Placed, source: WeightSource, start: int, stop: int) -> Bytes:
    plan = tensor.plan
    try:
        rows = plan.read(source, start, stop)
        if tensor.importance is None:
            return quantize_rows(rows, tensor.kind)
        first = start * plan.rows // plan.source_rows
        return np.concatenate(
            [
                quantize_rows(piece, tensor.kind, importance)
                for piece, importance in _by_matrix(rows, first, plan.shape[-2], tensor.importance)
            ]
        )
    except CorruptFileError as error:
        raise CorruptFileError(f"{plan.name}: {error}") from error


def _by_matrix(
    rows: Float32Array, first: int, height: int, importance: Float32Array
) -> Iterator[tuple[Float32Array, Float32Array]]:
    """Rows cut where one stacked matrix of `height` rows ends, with each one's importance."""
    done = 0
    while done < len(rows):
        matrix, offset = divmod(first + done, height)
        count = min(height - offset, len(rows) - done)
        yield rows[done : done + count], importance[matrix]
        done += count
