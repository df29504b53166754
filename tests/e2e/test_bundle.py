"""A bundle of a real run: made, checked, spoilt, replayed and used, as an app team does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import edgeadapt

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def bundled(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's bundle, as an archive and unpacked beside it."""
    folder = tmp_path_factory.mktemp("bundled")
    made = edgeadapt(
        "bundle", run / "runs/small", "--device", "laptop-x86", "--out", "small.zip", "--json",
        folder=folder, timeout=900,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    record = json.loads(made.stdout)
    # the recipe named no device: the plan chose among what the run has
    assert record["variants"][0]["devices"] == ["laptop-x86"] and record["forced"] == []
    unpacked = edgeadapt("verify", "small.zip", "--unpack", "small", folder=folder, timeout=300)
    assert unpacked.returncode == 0, unpacked.stderr
    assert record["manifest_sha256"] in unpacked.stdout
    return folder


def test_the_same_run_gives_the_same_bytes(run: Path, bundled: Path) -> None:
    again = edgeadapt(
        "bundle", run / "runs/small", "--device", "laptop-x86", "--out", "again.zip",
        folder=bundled, timeout=900,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert (bundled / "again.zip").read_bytes() == (bundled / "small.zip").read_bytes()


def test_the_manifest_tells_where_it_came_from(run: Path, bundled: Path) -> None:
    manifest = json.loads((bundled / "small/manifest.json").read_text())
    document = json.loads((run / "runs/small/run.json").read_text())
    assert manifest["base"]["sha256"] == document["base"]["sha256"]
    assert manifest["base"]["license"] == "apache-2.0"
    assert (bundled / "small" / manifest["base"]["license_files"][0]).is_file()
    (adapter,) = manifest["adapters"]
    assert adapter["sha256"] == document["adapter"]["sha256"] and adapter["method"] == "qlora"
    assert adapter["data_sha256"] == document["adapter"]["data_hash"]
    assert manifest["merge"]["onto"] == document["merge"]["onto"]
    (variant,) = manifest["variants"]
    assert {"Q4_K", "Q6_K", "F32"} <= set(variant["tensor_types"])
    assert {gate["gate"] for gate in variant["gates"]["llama-cpp"]} >= {"max_kl", "parity"}
    assert variant["measurements"][0]["decode_tps"] > 0
    assert {"torch", "peft", "llama-cpp-python"} <= set(manifest["tools"])
    assert str(run) not in (bundled / "small/manifest.json").read_text()


def test_one_byte_in_any_file_is_found_and_named(bundled: Path) -> None:
    folder = bundled / "small"
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        data = path.read_bytes()
        spoilt = bytearray(data)
        spoilt[len(data) // 3] ^= 1
        path.write_bytes(spoilt)
        found = edgeadapt("verify", "small", folder=bundled, timeout=300)
        path.write_bytes(data)
        assert found.returncode == 1, path
        assert path.relative_to(folder).as_posix() in found.stderr


def test_the_model_says_what_it_said(bundled: Path) -> None:
    checked = edgeadapt("verify", "small", "--run", "--json", folder=bundled, timeout=600)
    assert checked.returncode == 0, checked.stderr
    assert json.loads(checked.stdout)["replayed"][0]["runtime"] == "llama-cpp"
    alone = self_test(bundled / "small")
    assert alone.returncode == 0 and "all is well" in alone.stdout, alone.stdout


def self_test(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", "selftest.py"],
        cwd=folder, capture_output=True, text=True, timeout=600,
    )  # fmt: skip


def test_the_neighbouring_quantization_is_told_apart(run: Path, bundled: Path) -> None:
    """Hashes put right, as by somebody who exchanged the file on purpose."""
    document = json.loads((run / "runs/small/run.json").read_text())
    exported = edgeadapt(
        "export", "--base", "default", "--adapter", document["adapter"]["path"], "--format", "gguf",
        "--merge-onto", document["merge"]["onto"], "--quant", "Q4_K_S", "--out", "other.gguf",
        folder=bundled, timeout=300,
    )  # fmt: skip
    assert exported.returncode == 0, exported.stderr
    folder = bundled / "exchanged"
    laid_out = edgeadapt("verify", "small.zip", "--unpack", folder, folder=bundled, timeout=300)
    assert laid_out.returncode == 0, laid_out.stderr
    manifest = json.loads((folder / "manifest.json").read_text())
    path = manifest["variants"][0]["path"]
    (bundled / "other.gguf").replace(folder / path)
    rehash(folder, manifest, path)
    assert edgeadapt("verify", "exchanged", folder=bundled, timeout=300).returncode == 0
    checked = edgeadapt("verify", "exchanged", "--run", folder=bundled, timeout=600)
    assert checked.returncode == 1 and "does not say what it said" in checked.stderr
    assert self_test(folder).returncode == 1


def rehash(folder: Path, manifest: dict, path: str) -> None:
    from edgeadapt.bundle.manifest import digest_bytes
    from edgeadapt.files import sha256_file

    entry = {"size": (folder / path).stat().st_size, "sha256": sha256_file(folder / path)}
    manifest["files"][path] = entry
    data = json.dumps(manifest).encode()
    (folder / "manifest.json").write_bytes(data)
    (folder / "manifest.sha256").write_bytes(digest_bytes(data))


def test_the_python_example_answers(bundled: Path) -> None:
    (script,) = (bundled / "small/loading").rglob("llama_cpp_python.py")
    done = subprocess.run(
        [sys.executable, script.relative_to(bundled / "small")],
        cwd=bundled / "small", capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


def test_an_update_is_small_and_needs_its_base(run: Path, bundled: Path) -> None:
    made = edgeadapt(
        "bundle", run / "runs/small", "--since", "small.zip", "--out", "update.zip", "--json",
        folder=bundled, timeout=900,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["bytes"] < 1_000_000  # the device is no longer named
    assert edgeadapt("verify", "update.zip", folder=bundled, timeout=300).returncode == 2
    whole = edgeadapt("verify", "update.zip", "--base", "small.zip", folder=bundled, timeout=300)
    assert whole.returncode == 0, whole.stderr
