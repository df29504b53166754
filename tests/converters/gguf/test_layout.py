"""Sizes known before writing, split files as llama.cpp splits, and a disk that is too small."""

from __future__ import annotations

import shutil
from pathlib import Path

import gguf
import pytest

from edgeadapt.artifact import open_artifact
from edgeadapt.converters.base import ConversionRequest
from edgeadapt.converters.gguf.converter import GgufConverter
from edgeadapt.converters.gguf.options import GgufOptions, parse_size, parse_tensor_type
from edgeadapt.converters.onnx.converter import OnnxConverter
from edgeadapt.errors import CorruptFileError, InputError
from edgeadapt.safetensors_io import SafetensorsSource
from edgeadapt.weights import Float32Array
from tests.converters.gguf.test_converter import Broken, logits, tensors_of

LIMIT = 30_000


def request_for(folder: Path, mix: str, limit: int = 0) -> ConversionRequest:
    return ConversionRequest(
        SafetensorsSource(folder), folder, mix, "tiny", {"base": "tiny"}, threads=2,
        gguf=GgufOptions(split_max_bytes=limit),
    )  # fmt: skip


@pytest.mark.parametrize("mix", ["F32", "F16", "Q4_K_M", "Q6_K"])
@pytest.mark.parametrize("limit", [0, LIMIT])
def test_the_plan_is_what_is_written(
    mix: str, limit: int, tiny_model: Path, tmp_path: Path
) -> None:
    request, out = request_for(tiny_model, mix, limit), tmp_path / "m.gguf"
    plan = GgufConverter().plan(request, out)
    assert list(tmp_path.iterdir()) == []
    artifact = GgufConverter().convert(request, out)
    assert plan.exact and plan.disk == plan.output == artifact.size_bytes
    assert plan.files == {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert (len(plan.files) > 1) == bool(limit)


def test_parts_are_llama_cpps(tiny_model: Path, tmp_path: Path) -> None:
    whole = GgufConverter().convert(request_for(tiny_model, "Q8_0"), tmp_path / "whole.gguf").path
    first = GgufConverter().convert(request_for(tiny_model, "Q8_0", LIMIT), tmp_path / "m.gguf")
    paths = sorted(tmp_path.glob("m-*.gguf"))
    count = len(paths)
    assert [p.name for p in paths] == [f"m-{i + 1:05d}-of-{count:05d}.gguf" for i in range(count)]
    assert first.path == paths[0] and first.files == paths
    expected = tensors_of(whole)
    found: dict[str, tuple[str, bytes]] = {}
    for number, path in enumerate(paths):
        reader = gguf.GGUFReader(path)
        assert reader.fields["split.no"].contents() == number
        assert reader.fields["split.count"].contents() == count
        assert reader.fields["split.tensors.count"].contents() == len(expected)
        assert reader.fields["split.tensors.count"].types == [gguf.GGUFValueType.INT32]
        assert reader.fields["split.no"].types == [gguf.GGUFValueType.UINT16]
        assert ("llama.block_count" in reader.fields) == (number == 0)
        data = sum(-(-tensor.n_bytes // 32) * 32 for tensor in reader.tensors)
        assert data <= LIMIT or len(reader.tensors) == 1
        found |= tensors_of(path)
    assert found == expected and list(found) == list(expected)
    assert open_artifact(paths[0]).quantization == "Q8_0"


def test_llama_cpp_loads_the_first_part(tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    ids = [3, 77, 150, 12, 9]
    whole = GgufConverter().convert(request_for(tiny_model, "F16"), tmp_path / "whole.gguf").path
    split = GgufConverter().convert(request_for(tiny_model, "F16", LIMIT), tmp_path / "m.gguf").path
    expected: Float32Array = logits(whole, ids)
    assert (logits(split, ids) == expected).all()


def test_parts_come_all_or_none(tiny_model: Path, tmp_path: Path) -> None:
    broken = Broken(tiny_model, None)  # fails in its last layer, when parts are already written
    request = request_for(tiny_model, "F16", LIMIT)
    bad = ConversionRequest(broken, tiny_model, "F16", "tiny", gguf=request.gguf)
    with pytest.raises(CorruptFileError, match="went away"):
        GgufConverter().convert(bad, tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []
    count = len(GgufConverter().plan(request, tmp_path / "m.gguf").files)
    taken = tmp_path / f"m-{count:05d}-of-{count:05d}.gguf"
    taken.write_text("mine")
    with pytest.raises(InputError, match="exists"):
        GgufConverter().convert(request, tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == [taken] and taken.read_text() == "mine"


class Untouchable(SafetensorsSource):
    """Its weights must not be read."""

    def rows(self, name: str, start: int, stop: int) -> Float32Array:
        raise AssertionError("a weight was read")


@pytest.mark.parametrize("converter", [GgufConverter(), OnnxConverter()])
def test_a_full_disk_is_seen_before_work_begins(
    converter: GgufConverter | OnnxConverter,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quantization = "Q8_0" if converter.format == "gguf" else "int4"
    request = ConversionRequest(Untouchable(tiny_model), tiny_model, quantization, "tiny")
    needed = converter.plan(request, tmp_path / "deep" / "m").disk
    usage = shutil.disk_usage(tmp_path)._replace(free=needed - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match="free"):
        converter.convert(request, tmp_path / "deep" / "m")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "size"), [("2G", 2 * 10**9), ("500M", 5 * 10**8), ("7k", 7000), ("123", 123)]
)
def test_sizes_are_powers_of_ten(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "G", "-1G", "1.5G", "2GB", "9" * 40])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="size"):
        parse_size(text)


@pytest.mark.parametrize("text", ["", "ffn", "=Q8_0", "ffn=", "ffn=Q9", "(=Q8_0", "ffn=Q4_K_M"])
def test_other_tensor_types_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="--tensor-type"):
        parse_tensor_type(text)


def test_tensor_types_are_read() -> None:
    assert parse_tensor_type("a=b=q6_k") == ("a=b", gguf.GGMLQuantizationType.Q6_K)
