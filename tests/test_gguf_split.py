"""Models that were split over several GGUF files."""

from __future__ import annotations

import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest

from edgeadapt.base_model import resolve_base
from edgeadapt.errors import CorruptFileError, InputError
from edgeadapt.gguf_io import GgufFile
from edgeadapt.gguf_split import open_gguf, split_files
from edgeadapt.safetensors_io import SafetensorsSource
from edgeadapt.weights import read_tensor
from tests.importers.gguf_files import write_gguf


def split(whole: Path, folder: Path, count: int, *, tensors: int | None = None) -> list[Path]:
    """Split as llama.cpp's gguf-split does: all metadata in the first file."""
    file = GgufFile(whole)
    names = list(file.tensors)
    paths = []
    folder.mkdir()
    for number in range(count):
        path = folder / f"m-{number + 1:05d}-of-{count:05d}.gguf"
        writer = gguf.GGUFWriter(path, file.metadata["general.architecture"])
        if number == 0:
            for key, field in gguf.GGUFReader(whole).fields.items():
                if not key.startswith("GGUF.") and key != "general.architecture":
                    sub = field.types[-1] if len(field.types) > 1 else None
                    writer.add_key_value(key, field.contents(), field.types[0], sub)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(names) if tensors is None else tensors)
        for name in names[number::count]:
            writer.add_tensor(name, file.rows(name, 0, file.tensors[name].shape[0]))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        paths.append(path)
    return paths


@pytest.fixture(scope="module")
def whole(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tiny_model, tmp_path_factory.mktemp("whole") / "m.gguf")


@pytest.mark.parametrize("given", [0, 2])
def test_reads_as_one(whole: Path, given: int, tmp_path: Path) -> None:
    paths = split(whole, tmp_path / "s", 3)
    assert split_files(paths[given]) == paths
    one, many = GgufFile(whole), open_gguf(paths[given])
    assert set(one.tensors) == set(many.tensors)
    assert one.metadata.items() <= many.metadata.items()
    for name, tensor in one.tensors.items():
        rows = tensor.shape[0]
        np.testing.assert_array_equal(one.rows(name, 1, rows), many.rows(name, 1, rows))


def test_serves_as_a_base(whole: Path, tiny_model: Path, tmp_path: Path) -> None:
    paths = split(whole, tmp_path / "s", 2)
    folder = resolve_base(str(paths[0]))
    assert resolve_base(str(paths[1])) == folder
    imported, original = SafetensorsSource(folder), SafetensorsSource(tiny_model)
    for name in original.tensors():
        np.testing.assert_array_equal(read_tensor(imported, name), read_tensor(original, name))


def test_a_missing_file_is_named(whole: Path, tmp_path: Path) -> None:
    paths = split(whole, tmp_path / "s", 3)
    paths[1].unlink()
    with pytest.raises(InputError, match="m-00002-of-00003"):
        resolve_base(str(paths[0]))


def test_files_of_different_models(whole: Path, tmp_path: Path) -> None:
    paths = split(whole, tmp_path / "s", 2)
    shutil.copyfile(paths[0], paths[1])
    with pytest.raises(CorruptFileError, match="file 1 of 2"):
        open_gguf(paths[0])
    wrong = split(whole, tmp_path / "t", 2, tensors=5)
    with pytest.raises(CorruptFileError, match="expected 5"):
        open_gguf(wrong[0])


@pytest.mark.parametrize("name", ["m-00000-of-00002.gguf", "m-00003-of-00002.gguf", "m.gguf"])
def test_other_names_are_whole_files(name: str, tmp_path: Path) -> None:
    assert split_files(tmp_path / name) == [tmp_path / name]
