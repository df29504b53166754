"""What is in a bundle, and that it is the same each time."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

from edgeadapt.bundle.container import open_container
from edgeadapt.bundle.integrity import read_manifest
from edgeadapt.bundle.make import BundleSettings, make_bundle
from edgeadapt.bundle.manifest import Manifest, manifest_bytes, parse_manifest, schema_text
from edgeadapt.bundle.verify import VerifySettings, verify_bundle
from edgeadapt.errors import GateFailure, InputError
from edgeadapt.files import sha256_file
from tests.bundle.conftest import GATES, artifact_entry, write_run

PLAIN = BundleSettings(golden=False)
ROOT = Path(__file__).parents[2]


def manifest_of(path: Path) -> Manifest:
    return read_manifest(open_container(path))[0]


def test_it_holds_all_that_an_app_team_needs(made: Path, run_folder: Path) -> None:
    names = {p.relative_to(made).as_posix() for p in made.rglob("*") if p.is_file()}
    loading = {f"loading/gguf-F32/{name}" for name in (
        "Modelfile", "llama-cpp.sh", "llama_cpp_python.py", "Android.kt", "Model.swift",
    )}  # fmt: skip
    assert names >= loading | {
        "models/tiny-F32.gguf", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json",
        "licenses/LICENSE", "README.md", "manifest.json", "manifest.sha256", "manifest.schema.json",
    }  # fmt: skip
    manifest = manifest_of(made)
    (variant,) = manifest.variants
    assert variant.devices == {"raspberry-pi-5": "it fits"} and variant.passed
    assert variant.tensor_types["F32"].tensors == 20
    assert manifest.base.license == "mit" and manifest.base.license_files == ("licenses/LICENSE",)
    assert manifest.files["models/tiny-F32.gguf"].sha256 == sha256_file(
        run_folder / "tiny-F32.gguf"
    )


def test_it_tells_of_no_folder_of_this_machine(made: Path, run_base: Path) -> None:
    for path in made.rglob("*"):
        if path.is_file() and path.suffix not in (".gguf", ".safetensors"):
            assert str(run_base.parent) not in path.read_text(encoding="utf-8"), path


def test_the_same_run_gives_the_same_bytes(run_folder: Path, tmp_path: Path) -> None:
    for name in ("a.zip", "b.zip"):
        make_bundle(run_folder, tmp_path / name, PLAIN)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_folder_and_archive_hold_the_same(made: Path, run_folder: Path, tmp_path: Path) -> None:
    make_bundle(run_folder, tmp_path / "tiny.zip", PLAIN)
    with zipfile.ZipFile(tmp_path / "tiny.zip") as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path / "unzipped")
        assert all(info.date_time == (1980, 1, 1, 0, 0, 0) for info in archive.infolist())
    for path in (p for p in made.rglob("*") if p.is_file()):
        assert (tmp_path / "unzipped" / path.relative_to(made)).read_bytes() == path.read_bytes()
    record = verify_bundle(tmp_path / "tiny.zip", VerifySettings())
    assert record["passed"] and record["signature"] == "none"


def test_the_card_is_one_that_the_hub_reads(made: Path) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard.load(made / "README.md")
    assert card.data.license == "mit" and card.data.pipeline_tag == "text-generation"
    assert "| gguf-F32 | llama-cpp | max_kl | 0.01 | 0.2 | kept |" in card.text
    assert "> Over there." in card.text


def test_the_modelfile_names_model_and_stop_tokens(made: Path) -> None:
    folder = made / "loading/gguf-F32"
    lines = (folder / "Modelfile").read_text().splitlines()
    source = next(line.removeprefix("FROM ") for line in lines if line.startswith("FROM "))
    assert (folder / source).resolve() == (made / "models/tiny-F32.gguf").resolve()
    assert 'PARAMETER stop "<|im_end|>"' in lines


def test_no_placeholder_is_left(made: Path) -> None:
    for path in (made / "loading").rglob("*.*"):
        text = path.read_text(encoding="utf-8")
        assert not [word for word in text.split() if word.strip('",').startswith("@MODEL")], path
        assert "@CONTEXT@" not in text and "@FILE@" not in text and "@STEM@" not in text


def test_python_examples_compile(made: Path) -> None:
    for path in (made / "loading").rglob("*.py"):
        compile(path.read_text(encoding="utf-8"), str(path), "exec")


def test_a_manifest_is_read_back_as_it_was_written(made: Path) -> None:
    data = (made / "manifest.json").read_bytes()
    assert manifest_bytes(parse_manifest(data)) == data


def test_the_published_schema_is_current(made: Path) -> None:
    text = (ROOT / "docs/manifest.schema.json").read_text(encoding="utf-8")
    assert text == schema_text(), "python -m edgeadapt.bundle.manifest > docs/manifest.schema.json"
    assert (made / "manifest.schema.json").read_text(encoding="utf-8") == text


def failed(entry: dict[str, Any]) -> dict[str, Any]:
    gate = {"gate": "max_kl", "figure": 0.7, "limit": 0.2, "passed": False, "note": ""}
    judged = {
        "gates": [gate, GATES[1]],
        "failures": ["max_kl: 0.7, expected at most 0.2"],
        "passed": False,
    }
    return entry | {"fidelity": {"llama-cpp": judged}}


def test_what_failed_a_gate_ships_only_by_force(
    run_folder: Path, run_base: Path, tmp_path: Path
) -> None:
    entry = failed(artifact_entry(run_folder / "tiny-F32.gguf"))
    run = write_run(tmp_path / "run", run_base, [entry])
    with pytest.raises(GateFailure, match=r"max_kl: 0\.7, expected at most 0\.2"):
        make_bundle(run, tmp_path / "out", PLAIN)
    assert not (tmp_path / "out").exists()
    make_bundle(run, tmp_path / "out", BundleSettings(golden=False, force=True))
    manifest = manifest_of(tmp_path / "out")
    assert "max_kl: 0.7" in manifest.forced[0] and not manifest.variants[0].passed
    assert "Shipped although" in (tmp_path / "out/README.md").read_text()


def test_what_no_gate_saw_ships_only_by_force(
    run_folder: Path, run_base: Path, tmp_path: Path
) -> None:
    entry = artifact_entry(run_folder / "tiny-F32.gguf", fidelity={})
    run = write_run(tmp_path / "run", run_base, [entry])
    with pytest.raises(GateFailure, match="no gate results"):
        make_bundle(run, tmp_path / "out", PLAIN)


def test_a_device_gets_what_was_exported_for_it(run_folder: Path, tmp_path: Path) -> None:
    settings = BundleSettings(devices=("raspberry-pi-5",), golden=False)
    record = make_bundle(run_folder, tmp_path / "out", settings)
    assert record["variants"][0]["devices"] == ["raspberry-pi-5"]


def test_a_device_without_an_artifact_is_refused(run_folder: Path, tmp_path: Path) -> None:
    settings = BundleSettings(devices=("meta-quest-3",), golden=False)
    with pytest.raises(InputError, match="nothing for meta-quest-3, which should take"):
        make_bundle(run_folder, tmp_path / "out", settings)


def test_an_artifact_that_was_changed_is_refused(
    run_folder: Path, run_base: Path, tmp_path: Path
) -> None:
    model = tmp_path / "tiny-F32.gguf"
    shutil.copyfile(run_folder / "tiny-F32.gguf", model)
    run = write_run(tmp_path / "run", run_base, [artifact_entry(model)])
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)
    with pytest.raises(InputError, match="changed since"):
        make_bundle(run, tmp_path / "out", PLAIN)


@pytest.mark.parametrize(
    "changes",
    [{"artifacts": []}, {"artifacts": [{"path": 3}]}, {"base": None}, {"name": ["x"]}],
)
def test_a_run_that_is_none_is_refused(
    run_folder: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    document = json.loads((run_folder / "run.json").read_text()) | changes
    (tmp_path / "run.json").write_text(json.dumps(document))
    with pytest.raises(InputError):
        make_bundle(tmp_path, tmp_path / "out", PLAIN)


def test_nothing_is_left_where_bundling_fails(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "there.zip").write_bytes(b"mine")
    with pytest.raises(InputError, match="exists already"):
        make_bundle(run_folder, tmp_path / "there.zip", PLAIN)
    assert [p.name for p in tmp_path.iterdir()] == ["there.zip"]
    assert (tmp_path / "there.zip").read_bytes() == b"mine"


def test_examples_do_not_hide_the_packages_that_they_import() -> None:
    """Python looks beside a script first: onnxruntime_genai.py would import itself."""
    templates = (ROOT / "edgeadapt/bundle/loading").rglob("*.py.txt")
    stems = {path.name.removesuffix(".py.txt") for path in templates}
    assert stems and not stems & {"llama_cpp", "onnxruntime_genai", "onnxruntime", "numpy", "json"}
