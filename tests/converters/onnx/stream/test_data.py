"""The data file: places that do not overlap, memory that does not grow, failures that are told."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeadapt.converters.gguf.plan import RowRange, TensorPlan
from edgeadapt.converters.onnx.stream.blocks import BlockScheme
from edgeadapt.converters.onnx.stream.data import DataLayout, write_data
from edgeadapt.errors import CorruptFileError
from edgeadapt.weights import Float32Array, TensorInfo


class Endless:
    """A source that makes its rows when asked, each filled with its number."""

    config: dict[str, Any] = {}  # noqa: RUF012 - what `WeightSource` asks for

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        self._infos = {name: TensorInfo(name, shape, "F32") for name, shape in shapes.items()}

    def tensors(self) -> dict[str, TensorInfo]:
        return self._infos

    def rows(self, name: str, start: int, stop: int) -> Float32Array:
        numbers = np.arange(start, stop, dtype=np.float32)
        shape = self._infos[name].shape[1:]
        return np.broadcast_to(
            numbers.reshape(-1, *[1] * len(shape)), (len(numbers), *shape)
        ).copy()


def plan(name: str, shape: tuple[int, ...]) -> TensorPlan:
    return TensorPlan(name, shape, (RowRange(name, 0, shape[0]),))


@settings(max_examples=30, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 700), st.integers(1, 900)), min_size=1, max_size=6),
    kinds=st.lists(st.sampled_from(["float", "half", "turned", "int4", "int8"]), min_size=6,
                   max_size=6),
)  # fmt: skip
def test_places_are_aligned_and_apart(shapes: list[tuple[int, int]], kinds: list[str]) -> None:
    layout = DataLayout()
    for number, (shape, kind) in enumerate(zip(shapes, kinds, strict=False)):
        one = plan(f"t{number}", shape)
        if kind.startswith("int"):
            layout.add_blocks(one, BlockScheme(4 if kind == "int4" else 8))
        else:
            layout.add_float(one, half=kind == "half", transposed=kind == "turned")
    end = 0
    for part in (part for item in layout.items for part in item.parts):
        assert part.offset >= end and part.offset % 64 == 0
        assert part.nbytes < 1 << 20 or part.offset % 65536 == 0
        end = part.offset + part.nbytes
    assert layout.size == end


def test_every_row_gets_to_its_place(tmp_path: Path) -> None:
    layout, shape = DataLayout(), (3000, 500)
    places = [
        layout.add_float(plan("a", shape)),
        layout.add_float(plan("a", shape), transposed=True),
        layout.add_float(plan("a", shape), half=True),
    ]
    done: list[float] = []
    write_data(tmp_path / "data", layout, Endless(a=shape), 3, done.append)
    data = np.fromfile(tmp_path / "data", dtype=np.uint8)
    assert data.size == layout.size
    assert sum(done) == pytest.approx(sum(place.nbytes for place in places), abs=100)
    found = [
        data[place.offset : place.offset + place.nbytes].view(place.dtype).reshape(place.shape)
        for place in places
    ]
    expected = np.broadcast_to(np.arange(3000)[:, None], shape)
    np.testing.assert_array_equal(found[0], expected)
    np.testing.assert_array_equal(found[1], expected.T)
    np.testing.assert_array_equal(found[2], expected.astype(np.float16))


@pytest.mark.parametrize("kind", ["int4", "turned"])
def test_memory_does_not_grow_with_the_tensor(kind: str, tmp_path: Path) -> None:
    """A matrix of 240 MB, through less than 60 MB."""
    layout, shape = DataLayout(), (60_000, 1000)
    if kind == "int4":
        layout.add_blocks(plan("a", shape), BlockScheme(4))
    else:
        layout.add_float(plan("a", shape), transposed=True)
    tracemalloc.start()
    try:
        write_data(tmp_path / "data", layout, Endless(a=shape), 2, lambda _: None)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 60 << 20


def test_existing_file_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("mine")
    layout = DataLayout()
    layout.add_float(plan("a", (2, 2)))
    with pytest.raises(FileExistsError):
        write_data(tmp_path / "data", layout, Endless(a=(2, 2)), 1, lambda _: None)
    assert (tmp_path / "data").read_text() == "mine"


def test_infinite_values_are_refused(tmp_path: Path) -> None:
    class Infinite(Endless):
        def rows(self, name: str, start: int, stop: int) -> Float32Array:
            rows = super().rows(name, start, stop)
            rows[rows == 2500] = np.inf
            return rows

    layout = DataLayout()
    layout.add_blocks(plan("a", (3000, 500)), BlockScheme(8))
    with pytest.raises(CorruptFileError, match="a holds NaN or infinite"):
        write_data(tmp_path / "data", layout, Infinite(a=(3000, 500)), 2, lambda _: None)
