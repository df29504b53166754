"""What a base may be given as, and what is refused with which words."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
from click.testing import CliRunner

from edgeadapt import base_model
from edgeadapt.base_model import base_hash, file_sha256, import_base, resolve_base
from edgeadapt.cli import cli
from edgeadapt.errors import CorruptFileError, InputError, MissingExtraError
from edgeadapt.files import cache_dir
from tests.importers.gguf_files import write_gguf
from tests.tiny import save_llama


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(tiny, tmp_path / "model")


def test_a_folder_is_taken_as_it_is(model: Path) -> None:
    before = sorted((p.name, p.stat().st_mtime_ns) for p in model.iterdir())
    assert resolve_base(str(model)) == model
    assert sorted((p.name, p.stat().st_mtime_ns) for p in model.iterdir()) == before


def test_a_gguf_file_is_imported_once_per_content(tiny: Path, tmp_path: Path) -> None:
    path = write_gguf(tiny, tmp_path / "a.gguf")
    folder = resolve_base(str(path))
    assert folder.parent == cache_dir() / "bases"
    made = (folder / "model.safetensors").stat().st_ino
    copy = shutil.copy(path, tmp_path / "b.gguf")
    assert resolve_base(str(copy)) == folder
    assert (folder / "model.safetensors").stat().st_ino == made
    other = write_gguf(tiny, tmp_path / "c.gguf", edit=lambda w: w.add_name("other"))
    assert resolve_base(str(other)) != folder


def test_a_damaged_gguf_leaves_nothing_in_the_cache(tiny: Path, tmp_path: Path) -> None:
    path = write_gguf(tiny, tmp_path / "a.gguf")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorruptFileError, match="download the file again"):
        resolve_base(str(path))
    assert not (cache_dir() / "bases").exists()


@pytest.mark.parametrize("spec", ["no/where.gguf", "./missing", "/missing", "a/b/c", ""])
def test_a_missing_path_is_not_looked_up_online(spec: str) -> None:
    with pytest.raises(InputError, match=r"does not exist|no config\.json"):
        resolve_base(spec)


def test_an_uncached_hub_id_offline_is_one_sentence() -> None:
    with pytest.raises(InputError, match="no folder or file owner/name") as caught:
        resolve_base("owner/name")
    assert "\n" not in str(caught.value)


def test_a_malformed_hub_id_is_named() -> None:
    with pytest.raises(InputError, match="'a b' is neither"):
        resolve_base("a b")


def test_a_cached_hub_model_needs_no_network(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0" * 40
    repo = tmp_path / "hub" / "models--owner--name"
    shutil.copytree(tiny, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = resolve_base("owner/name")
    assert base_hash(folder) == base_hash(tiny)


def test_revision_is_for_hub_ids(model: Path) -> None:
    with pytest.raises(InputError, match="--revision is for hub ids"):
        resolve_base(str(model), revision="main")


def test_pickled_weights_are_refused_with_the_remedy(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(InputError, match="convert them to safetensors"):
        resolve_base(str(model))


def test_an_adapter_is_not_a_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="is an adapter, not a base"):
        resolve_base(str(tmp_path))


@pytest.mark.parametrize("text", ["[]", "{}", '{"model_type": 3}', "{", "\xff"])
def test_a_bad_config_is_corrupt(model: Path, text: str) -> None:
    (model / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(CorruptFileError, match=r"config\.json"):
        resolve_base(str(model))


def test_missing_config_and_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()
    with pytest.raises(InputError, match="has no weights"):
        resolve_base(str(model))
    (model / "config.json").unlink()
    with pytest.raises(InputError, match=r"no config\.json"):
        resolve_base(str(model))


def test_truncated_weights_are_corrupt(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CorruptFileError, match="truncated"):
        resolve_base(str(model))


def test_one_file_of_a_model_points_to_its_folder(model: Path) -> None:
    with pytest.raises(InputError, match="give its folder"):
        resolve_base(str(model / "model.safetensors"))


def test_the_default_names_its_package_when_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_model, "_DEFAULT_PACKAGE", "no_such_package_here")
    with pytest.raises(MissingExtraError, match="smollm2"):
        resolve_base("default")


def test_base_hash_sees_weights_and_config_only(model: Path) -> None:
    before = base_hash(model)
    (model / "tokenizer.json").write_text("{}")
    assert base_hash(model) == before
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    changed = base_hash(model)
    assert changed != before
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    assert base_hash(model) not in (before, changed)


def test_a_hash_is_remembered_and_survives_a_broken_memo(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    first = file_sha256(path)
    (memo,) = (cache_dir() / "hashes").iterdir()
    memo.write_text(json.dumps({"sha256": "f" * 64}))
    assert file_sha256(path) == "f" * 64  # it was remembered
    for broken in ("{", "[]", '{"sha256": 3}'):
        memo.write_text(broken)
        assert file_sha256(path) == first
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert file_sha256(path) != first


def test_import_copies_a_folder_without_foreign_files(model: Path, tmp_path: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    (model / "modeling_odd.py").write_text("raise SystemExit")
    out = import_base(str(model), tmp_path / "out")
    assert {p.name for p in out.iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip
    assert base_hash(out) == base_hash(model)


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    return result.exit_code, result.stdout, result.stderr


def test_the_command_prints_what_was_made(tiny: Path, tmp_path: Path) -> None:
    path = write_gguf(tiny, tmp_path / "a.gguf")
    code, stdout, _ = run("import", path, "--out", tmp_path / "out", "--json")
    assert code == 0
    made = json.loads(stdout)
    assert made["path"] == str(tmp_path / "out")
    assert made["model_type"] == "llama"
    assert made["dtypes"] == ["F32"]
    assert made["base_hash"] == base_hash(tmp_path / "out")
    code, _, stderr = run("import", path, "--out", tmp_path / "out")
    assert (code, stderr.count("\n")) == (2, 1)
    assert "exists already" in stderr


def test_the_command_leaves_nothing_of_bad_input(tiny: Path, tmp_path: Path) -> None:
    path = write_gguf(tiny, tmp_path / "a.gguf")
    path.write_bytes(path.read_bytes()[:-1])
    code, stdout, stderr = run("import", path, "--out", tmp_path / "out")
    assert (code, stdout) == (2, "")
    assert stderr.startswith("Error: ")
    assert "Traceback" not in stderr
    assert not (tmp_path / "out").exists()
