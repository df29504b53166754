"""Every change of a bundle is found and named."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgeadapt.bundle.archive import write_archive
from edgeadapt.bundle.verify import VerifySettings, verify_bundle
from edgeadapt.cli import cli
from edgeadapt.errors import CorruptFileError, GateFailure, InputError

WHOLE = VerifySettings()


def files_of(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def flip(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 0x10]))


def test_one_byte_changed_in_any_file_is_found_and_named(bundle: Path) -> None:
    for path in files_of(bundle):
        size = path.stat().st_size
        for position in {0, size // 2, size - 1}:
            flip(path, position)
            with pytest.raises(GateFailure) as found:
                verify_bundle(bundle, WHOLE)
            name = path.relative_to(bundle).as_posix()
            assert name in str(found.value) and found.value.exit_code == 1
            flip(path, position)
    assert verify_bundle(bundle, WHOLE)["passed"]


def test_every_byte_of_an_archive_counts(bundle: Path, tmp_path: Path) -> None:
    shutil.rmtree(bundle / "models")  # what is left is small enough to try every byte
    whole = tmp_path / "tiny.zip"
    small = write_small(bundle, tmp_path)
    write_archive(small, whole)
    assert verify_bundle(whole, WHOLE)["passed"]
    for position in range(whole.stat().st_size):
        flip(whole, position)
        with pytest.raises((GateFailure, CorruptFileError, InputError)):
            verify_bundle(whole, WHOLE)
        flip(whole, position)


def write_small(bundle: Path, tmp_path: Path) -> Path:
    """A bundle of two short files, whose archive has a few thousand bytes."""
    from edgeadapt.bundle.contents import _entry
    from edgeadapt.bundle.manifest import Manifest, digest_bytes, manifest_bytes

    value = json.loads((bundle / "manifest.json").read_text())
    contents = {"models/tiny-F32.gguf": b"not a model", "README.md": b"# hello\n"}
    value["base"]["license_files"] = []
    value["files"] = {name: _entry(data).model_dump() for name, data in contents.items()}
    data = manifest_bytes(Manifest.model_validate(value))
    contents |= {"manifest.json": data, "manifest.sha256": digest_bytes(data)}
    folder = tmp_path / "small"
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_what_was_added_removed_and_renamed_is_named(bundle: Path) -> None:
    (bundle / "models/extra.bin").write_bytes(b"x")
    (bundle / "licenses/LICENSE").unlink()
    (bundle / "README.md").rename(bundle / "READYOU.md")
    with pytest.raises(GateFailure) as found:
        verify_bundle(bundle, WHOLE)
    assert found.value.record is not None
    assert found.value.record["added"] == ["models/extra.bin"]
    assert found.value.record["removed"] == ["licenses/LICENSE"]
    assert found.value.record["renamed"] == {"README.md": "READYOU.md"}


def test_the_same_in_an_archive(bundle: Path, tmp_path: Path) -> None:
    (bundle / "licenses/LICENSE").rename(bundle / "licenses/OTHER")
    write_archive(bundle, tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip", "a") as archive:
        archive.writestr("evil.sh", "rm -rf /")
    with pytest.raises(GateFailure) as found:
        verify_bundle(tmp_path / "a.zip", WHOLE)
    assert "evil.sh was added" in str(found.value)
    assert "licenses/LICENSE was renamed to licenses/OTHER" in str(found.value)


def test_bytes_after_an_archive_are_found(made: Path, tmp_path: Path) -> None:
    write_archive(made, tmp_path / "a.zip")
    with (tmp_path / "a.zip").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(GateFailure, match="something follows"):
        verify_bundle(tmp_path / "a.zip", WHOLE)


def test_an_archive_of_another_tool_is_refused(made: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files_of(made):
            archive.write(path, path.relative_to(made).as_posix())
    with pytest.raises((GateFailure, CorruptFileError)):
        verify_bundle(tmp_path / "a.zip", WHOLE)


def test_a_cut_archive_is_found(made: Path, tmp_path: Path) -> None:
    write_archive(made, tmp_path / "a.zip")
    data = (tmp_path / "a.zip").read_bytes()
    for length in (3, 40, len(data) // 2, len(data) - 1):
        (tmp_path / "a.zip").write_bytes(data[:length])
        with pytest.raises((GateFailure, CorruptFileError, InputError)):
            verify_bundle(tmp_path / "a.zip", WHOLE)


def test_links_are_not_followed(bundle: Path, tmp_path: Path) -> None:
    card = bundle / "README.md"
    card.rename(tmp_path / "elsewhere.md")
    card.symlink_to(tmp_path / "elsewhere.md")
    with pytest.raises(GateFailure, match=r"README\.md is a link"):
        verify_bundle(bundle, WHOLE)


def test_the_digest_pins_a_bundle(made: Path) -> None:
    digest = verify_bundle(made, WHOLE)["manifest_sha256"]
    assert verify_bundle(made, VerifySettings(digest=digest.upper()))["passed"]
    with pytest.raises(GateFailure, match="another bundle"):
        verify_bundle(made, VerifySettings(digest="0" * 64))


def test_unpacking_gives_the_folder(made: Path, tmp_path: Path) -> None:
    write_archive(made, tmp_path / "a.zip")
    verify_bundle(tmp_path / "a.zip", VerifySettings(unpack=tmp_path / "out"))
    assert verify_bundle(tmp_path / "out", WHOLE)["passed"]
    with pytest.raises(InputError, match="exists already"):
        verify_bundle(tmp_path / "a.zip", VerifySettings(unpack=tmp_path / "out"))


def test_the_command_names_the_file_and_ends_with_1(bundle: Path) -> None:
    whole = CliRunner().invoke(cli, ["verify", str(bundle)])
    assert whole.exit_code == 0 and "all as they were made" in whole.stdout
    flip(bundle / "models/tiny-F32.gguf", 5)
    spoilt = CliRunner().invoke(cli, ["verify", str(bundle), "--json"])
    assert spoilt.exit_code == 1 and "models/tiny-F32.gguf was changed" in spoilt.stderr
    assert json.loads(spoilt.stdout)["changed"] == ["models/tiny-F32.gguf"]


def test_what_is_no_bundle_is_refused_with_2(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        assert CliRunner().invoke(cli, ["verify", str(path)]).exit_code == 2
