"""A run folder with one real, tiny GGUF file, and the bundle of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeadapt.artifact import open_artifact
from edgeadapt.base_model import base_hash
from edgeadapt.bundle.make import BundleSettings, make_bundle

GATES = [
    {"gate": "max_kl", "figure": 0.01, "limit": 0.2, "passed": True, "note": ""},
    {"gate": "parity", "figure": None, "limit": True, "passed": True, "note": ""},
]


def artifact_entry(path: Path, **changes: Any) -> dict[str, Any]:
    """An artifact as run.json lists it."""
    artifact = open_artifact(path)
    entry = {
        "path": str(path),
        "format": artifact.format,
        "quantization": artifact.quantization,
        "sha256": artifact.sha256(),
        "bytes": artifact.size_bytes,
        "devices": {"raspberry-pi-5": "it fits"},
        "lineage": artifact.lineage,
        "fidelity": {"llama-cpp": {"gates": GATES, "failures": [], "passed": True}},
    }
    return entry | changes


def write_run(root: Path, base: Path, artifacts: list[dict[str, Any]], **changes: Any) -> Path:
    """A run folder that holds what a bundle reads of it."""
    root.mkdir(parents=True, exist_ok=True)
    document = {
        "schema_version": 1,
        "name": "tiny",
        "recipe": {},
        "base": {"name": str(base), "path": str(base), "sha256": base_hash(base)},
        "adapter": None,
        "merge": None,
        "artifacts": artifacts,
        "samples": [
            {"prompt": "Where is the fox?", "answers": {"F32 on llama-cpp": "Over there."}}
        ],
        "measurements": [],
        "stages": [],
    }
    (root / "run.json").write_text(json.dumps(document | changes))
    return root


@pytest.fixture(scope="session")
def run_base(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a licence and a model card, as they come from the hub."""
    folder = tmp_path_factory.mktemp("bundle") / "base"
    shutil.copytree(tiny_model, folder)
    (folder / "LICENSE").write_text("Do what you like.\n")
    (folder / "README.md").write_text("---\nlicense: mit\ntags: [tiny]\n---\n# Tiny\n")
    return folder


@pytest.fixture(scope="session")
def run_folder(run_base: Path, tiny_gguf: Path) -> Path:
    """A finished run with one artifact that kept its gates; not to be changed."""
    root = run_base.parent / "runs/tiny"
    root.mkdir(parents=True)
    model = root / "tiny-F32.gguf"
    shutil.copyfile(tiny_gguf, model)
    return write_run(root, run_base, [artifact_entry(model)])


@pytest.fixture(scope="session")
def made(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of it as a folder, without golden vectors; not to be changed."""
    out = tmp_path_factory.mktemp("made") / "tiny"
    make_bundle(run_folder, out, BundleSettings(golden=False))
    return out


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    """A copy of the bundle that a test may spoil."""
    return Path(shutil.copytree(made, tmp_path / "bundle"))


@pytest.fixture
def write_bundle(bundle: Path) -> Callable[..., Path]:
    """Gives the copy a manifest with some fields changed, and the digest that belongs to it."""
    from edgeadapt.bundle.manifest import DIGEST, MANIFEST, digest_bytes

    def write(**changes: Any) -> Path:
        value = json.loads((bundle / MANIFEST).read_text()) | changes
        data = json.dumps(value).encode()
        (bundle / MANIFEST).write_bytes(data)
        (bundle / DIGEST).write_bytes(digest_bytes(data))
        return bundle

    return write
