"""The safetensors reader and writer against the `safetensors` library, and against bad files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeadapt.errors import CorruptFileError, InputError, UnsupportedError
from edgeadapt.safetensors_io import (
    SafetensorsFile,
    SafetensorsSource,
    bf16_to_float32,
    float32_to_bf16,
    write_safetensors,
)
from edgeadapt.weights import TensorInfo

TORCH = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
relaxed = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def arrays() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "matrix": random.standard_normal((37, 5)).astype(np.float32),
        "vector": random.standard_normal(7).astype(np.float32),
        "cube": random.standard_normal((3, 2, 4)).astype(np.float32),
        "scalar": np.array(1.5, np.float32),
        "empty": np.zeros((0, 4), np.float32),
    }


def write(path: Path, values: dict[str, np.ndarray], dtypes: dict[str, str]) -> None:
    infos = {name: TensorInfo(name, a.shape, dtypes[name]) for name, a in values.items()}
    write_safetensors(path, infos, lambda name, a, b: np.atleast_1d(values[name])[a:b])


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_the_library_reads_what_we_write(tmp_path: Path, dtype: str) -> None:
    values = arrays()
    write(tmp_path / "a.safetensors", values, dict.fromkeys(values, dtype))
    read = safetensors.torch.load_file(tmp_path / "a.safetensors")
    assert read.keys() == values.keys()
    for name, array in values.items():
        assert torch.equal(read[name], torch.from_numpy(array).to(TORCH[dtype]))


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_we_read_what_the_library_writes(tmp_path: Path, dtype: str) -> None:
    values = {name: torch.from_numpy(a).to(TORCH[dtype]) for name, a in arrays().items()}
    safetensors.torch.save_file(values, tmp_path / "a.safetensors", {"format": "pt"})
    file = SafetensorsFile(tmp_path / "a.safetensors")
    assert file.metadata == {"format": "pt"}
    for name, tensor in values.items():
        info = file.tensors()[name]
        assert (info.shape, info.dtype) == (tuple(tensor.shape), dtype)
        read = file.rows(name, 0, info.shape[0] if info.shape else 1)
        np.testing.assert_array_equal(read, tensor.float().numpy())
    rows = file.rows("matrix", 3, 9)
    np.testing.assert_array_equal(rows, values["matrix"][3:9].float().numpy())
    rows[:] = 0  # fresh, writable memory
    assert file.rows("matrix", 3, 9).any()
    with pytest.raises(IndexError):
        file.rows("matrix", 30, 38)


def test_mixed_dtypes_are_aligned_and_named_in_metadata(tmp_path: Path) -> None:
    values = {"half": np.ones(3, np.float32), "full": np.ones(2, np.float32)}
    write(tmp_path / "a.safetensors", values, {"half": "F16", "full": "F32"})
    header_bytes = int.from_bytes((tmp_path / "a.safetensors").read_bytes()[:8], "little")
    assert header_bytes % 8 == 0
    header = json.loads((tmp_path / "a.safetensors").read_bytes()[8 : 8 + header_bytes])
    assert header["full"]["data_offsets"] == [0, 8]
    assert header["__metadata__"] == {"format": "pt"}


def test_rows_are_asked_for_in_small_chunks(tmp_path: Path) -> None:
    asked: list[int] = []

    def read(name: str, start: int, stop: int) -> np.ndarray:
        asked.append((stop - start) * 1024 * 4)
        return np.zeros((stop - start, 1024), np.float32)

    write_safetensors(tmp_path / "a", {"t": TensorInfo("t", (5000, 1024), "F16")}, read)
    assert sum(asked) == 5000 * 1024 * 4
    assert max(asked) <= 8 << 20


def bf16_by_torch(values: np.ndarray) -> np.ndarray:
    return torch.from_numpy(values.copy()).bfloat16().float().numpy()


@given(hnp.arrays(np.uint32, st.integers(1, 64)))
def test_bf16_rounds_like_torch(bits: np.ndarray) -> None:
    values = bits.view(np.float32)
    ours = bf16_to_float32(float32_to_bf16(values))
    np.testing.assert_array_equal(ours, bf16_by_torch(values))


@pytest.mark.parametrize("bits", [0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF, 0x7F800001])
def test_bf16_ties_overflow_and_nan(bits: int) -> None:
    value = np.array([bits], np.uint32).view(np.float32)
    ours = bf16_to_float32(float32_to_bf16(value))
    np.testing.assert_array_equal(ours, bf16_by_torch(value))


def test_f16_overflow_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="beyond F16"):
        write(tmp_path / "a", {"t": np.array([1e6], np.float32)}, {"t": "F16"})
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_and_other_dtypes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine")
    with pytest.raises(InputError, match="exists"):
        write(tmp_path / "a", {"t": np.ones(1, np.float32)}, {"t": "F32"})
    with pytest.raises(UnsupportedError, match="I64"):
        write(tmp_path / "b", {"t": np.ones(1, np.float32)}, {"t": "I64"})
    assert (tmp_path / "a").read_text() == "mine"


def test_integer_tensors_are_listed_but_not_read(tmp_path: Path) -> None:
    safetensors.numpy.save_file({"ids": np.arange(3)}, tmp_path / "a")
    file = SafetensorsFile(tmp_path / "a")
    assert file.tensors()["ids"].dtype == "I64"
    with pytest.raises(UnsupportedError, match="ids is stored as I64"):
        file.rows("ids", 0, 1)


def raw_file(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(shape: list[Any], start: Any, stop: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


BAD = {
    "not an object": ([1], b""),
    "not json": (b"{", b""),
    "not utf-8": (b'{"\xff":1}', b""),
    "deep": (b"[" * 100_000, b""),
    "endless number": (b'{"a":' + b"1" * 10_000 + b"}", b""),
    "twice": (b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":{}}', b""),
    "entry": ({"a": 3}, b""),
    "extra field": ({"a": entry([1], 0, 4) | {"x": 1}}, b"0000"),
    "dtype": ({"a": entry([1], 0, 4, "F99")}, b"0000"),
    "dtype list": ({"a": entry([1], 0, 4, ["F32"])}, b"0000"),
    "negative": ({"a": entry([-1, -1], 0, 4)}, b"0000"),
    "float shape": ({"a": entry([1.0], 0, 4)}, b"0000"),
    "bool shape": ({"a": entry([True], 0, 4)}, b"0000"),
    "size": ({"a": entry([2], 0, 4)}, b"0000"),
    "overflow": ({"a": entry([2**62, 2**62], 0, 4)}, b"0000"),
    "reversed": ({"a": entry([1], 4, 0)}, b"0000"),
    "past the end": ({"a": entry([2], 0, 8)}, b"0000"),
    "hole": ({"a": entry([1], 4, 8)}, b"00000000"),
    "overlap": ({"a": entry([2], 0, 8), "b": entry([1], 4, 8)}, b"00000000"),
    "left over": ({"a": entry([1], 0, 4)}, b"00000000"),
    "metadata": ({"__metadata__": {"a": 1}}, b""),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_headers(tmp_path: Path, case: str) -> None:
    header, data = BAD[case]
    with pytest.raises(CorruptFileError, match=r"bad\.safetensors"):
        SafetensorsFile(raw_file(tmp_path / "bad.safetensors", header, data))


def test_every_truncation_is_corrupt(tmp_path: Path) -> None:
    values = arrays()
    write(tmp_path / "a", values, dict.fromkeys(values, "F16"))
    whole = (tmp_path / "a").read_bytes()
    for size in range(len(whole)):
        (tmp_path / "b").write_bytes(whole[:size])
        with pytest.raises(CorruptFileError):
            SafetensorsFile(tmp_path / "b")


def test_a_header_longer_than_the_file_is_corrupt(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xff" * 8 + b"{}")
    with pytest.raises(CorruptFileError, match="header of 18446744073709551615 bytes"):
        SafetensorsFile(tmp_path / "a")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "I8", "F4"]) | JSON,
        "shape": st.lists(st.integers(-1, 5), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(-1, 64), min_size=2, max_size=2) | JSON,
    }
)


@relaxed
@given(
    header=st.dictionaries(st.text(max_size=4) | st.just("__metadata__"), ENTRY | JSON),
    data=st.binary(max_size=64),
)
def test_any_header_opens_or_is_corrupt(tmp_path: Path, header: Any, data: bytes) -> None:
    try:
        file = SafetensorsFile(raw_file(tmp_path / "a", header, data))
    except CorruptFileError:
        return
    assert sum(i.size for i in file.tensors().values()) <= 2 * len(data)


@relaxed
@given(st.binary(max_size=200))
def test_any_bytes_open_or_are_corrupt(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(CorruptFileError):
        SafetensorsFile(tmp_path / "a")


def sharded(folder: Path) -> dict[str, np.ndarray]:
    values = {"x": np.arange(6, dtype=np.float32).reshape(3, 2), "y": np.ones(2, np.float32)}
    safetensors.numpy.save_file({"x": values["x"]}, folder / "model-1.safetensors")
    safetensors.numpy.save_file({"y": values["y"]}, folder / "model-2.safetensors")
    index = {"weight_map": {"x": "model-1.safetensors", "y": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text('{"model_type": "tiny"}')
    return values


def test_shards(tmp_path: Path) -> None:
    values = sharded(tmp_path)
    source = SafetensorsSource(tmp_path)
    assert source.config == {"model_type": "tiny"}
    assert list(source.tensors()) == ["x", "y"]
    np.testing.assert_array_equal(source.rows("x", 1, 3), values["x"][1:3])


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    sharded(tmp_path)
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(InputError, match=r"lacks model-2\.safetensors"):
        SafetensorsSource(tmp_path)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    sharded(tmp_path)
    (tmp_path / "model-2.safetensors").write_bytes((tmp_path / "model-1.safetensors").read_bytes())
    with pytest.raises(CorruptFileError, match="lacks tensor y"):
        SafetensorsSource(tmp_path)


@pytest.mark.parametrize("shard", ["../model-1.safetensors", "/etc/passwd", "..", "", 3])
def test_shards_outside_the_folder_are_refused(tmp_path: Path, shard: object) -> None:
    sharded(tmp_path)
    index = {"weight_map": {"x": shard}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CorruptFileError, match="not a file"):
        SafetensorsSource(tmp_path)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(InputError, match=r"pytorch_model\.bin.*convert them to safetensors"):
        SafetensorsSource(tmp_path)
