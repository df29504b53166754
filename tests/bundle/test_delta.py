"""Bundles that hold only what changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edgeadapt.bundle.make import BundleSettings, make_bundle
from edgeadapt.bundle.verify import VerifySettings, verify_bundle
from edgeadapt.errors import GateFailure, InputError
from tests.bundle.conftest import artifact_entry, write_run


@pytest.fixture(scope="module")
def newer(run_folder: Path, run_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run again, with other answers: the model is the same, the card is not."""
    root = tmp_path_factory.mktemp("newer")
    entry = artifact_entry(run_folder / "tiny-F32.gguf")
    samples = [{"prompt": "Where is the fox?", "answers": {"F32 on llama-cpp": "Gone."}}]
    return write_run(root, run_base, [entry], samples=samples)


@pytest.fixture(scope="module", params=["delta", "delta.zip"])
def delta(
    made: Path,
    newer: Path,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Path:
    out = tmp_path_factory.mktemp("delta") / str(request.param)
    make_bundle(newer, out, BundleSettings(since=made, golden=False))
    return out


def size_of(path: Path) -> int:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(p.stat().st_size for p in files)


def test_it_is_small_and_whole_with_its_base(made: Path, delta: Path, tmp_path: Path) -> None:
    assert size_of(delta) < size_of(made) / 10
    settings = VerifySettings(base=made, unpack=tmp_path / "whole")
    assert verify_bundle(delta, settings)["passed"]
    assert "> Gone." in (tmp_path / "whole/README.md").read_text()
    model = "models/tiny-F32.gguf"
    assert (tmp_path / "whole" / model).read_bytes() == (made / model).read_bytes()
    assert verify_bundle(tmp_path / "whole", VerifySettings())["passed"]


def test_without_its_base_it_says_which_it_needs(delta: Path) -> None:
    with pytest.raises(InputError, match="only what changed since tiny"):
        verify_bundle(delta, VerifySettings())


def test_another_base_is_refused(delta: Path, newer: Path, tmp_path: Path) -> None:
    make_bundle(newer, tmp_path / "other", BundleSettings(golden=False))
    with pytest.raises(GateFailure, match="not the bundle that this one builds on"):
        verify_bundle(delta, VerifySettings(base=tmp_path / "other"))


def test_a_changed_base_is_refused_and_the_file_named(
    delta: Path, made: Path, tmp_path: Path
) -> None:
    shutil.copytree(made, tmp_path / "spoilt")
    path = tmp_path / "spoilt/models/tiny-F32.gguf"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(GateFailure, match=r"models/tiny-F32\.gguf in .* is not the file"):
        verify_bundle(delta, VerifySettings(base=tmp_path / "spoilt"))


def test_a_whole_bundle_wants_no_base(made: Path) -> None:
    with pytest.raises(InputError, match="needs no --base"):
        verify_bundle(made, VerifySettings(base=made))


def test_a_delta_of_a_delta_is_refused(delta: Path, newer: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds only changes itself"):
        make_bundle(newer, tmp_path / "out", BundleSettings(since=delta, golden=False))
