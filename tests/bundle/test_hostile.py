"""Bundles made to do harm: nothing but our errors comes out, and nothing is written outside."""

from __future__ import annotations

import contextlib
import io
import json
import os
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeadapt.bundle.container import Archive
from edgeadapt.bundle.manifest import parse_manifest
from edgeadapt.bundle.names import check_name, check_names
from edgeadapt.bundle.verify import VerifySettings, verify_bundle
from edgeadapt.bundle.zip_format import Member, directory, local_header
from edgeadapt.errors import CorruptFileError, EdgeAdaptError, InputError

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner,
                                                                max_size=3),
    max_leaves=8,
)  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "../x", "a/../../x", "/etc/passwd", "a//b", "./a", "a/.", "C:/x", "C:x", "\\\\server\\x",
        "a\\b", "con", "a/NUL.txt", "com1", "trailing.", "trailing ", "a\0b", "a\nb", "a\u202eb",
        "e\u0301", "a" * 201, "/".join("a" * 13), "a*b", "", "x" * 600, "\ud800",
    ],
)  # fmt: skip
def test_names_that_lead_outside_or_mean_different_files_are_refused(name: str) -> None:
    with pytest.raises(CorruptFileError):
        check_name(name)


@pytest.mark.parametrize("names", [["a", "A"], ["straße", "STRASSE"], ["a", "a/b"], ["A/x", "a"]])
def test_names_that_collide_are_refused(names: list[str]) -> None:
    with pytest.raises(CorruptFileError):
        check_names(names)


def test_too_many_names_are_refused() -> None:
    with pytest.raises(CorruptFileError, match="more than"):
        check_names(f"f{i}" for i in range(20_000))


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "models/../../outside"])
def test_a_manifest_that_names_a_file_outside_is_refused(
    write_bundle: Callable[..., Path], bundle: Path, name: str
) -> None:
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    files[name] = {"size": 1, "sha256": "0" * 64}
    place = write_bundle(files=files)
    with pytest.raises(CorruptFileError, match="names a file"):
        verify_bundle(place, VerifySettings(unpack=bundle.parent / "out"))
    assert sorted(p.name for p in bundle.parent.iterdir()) == ["bundle"]


@pytest.mark.parametrize(
    "changes",
    [
        {"files": []}, {"files": {"a": {"size": -1, "sha256": "0" * 64}}}, {"variants": []},
        {"files": {"a": {"size": 1, "sha256": "xyz"}}}, {"schema_version": "1"}, {"name": 5},
        {"schema_version": 99}, {"tools": {"a": 1}}, {"base": None}, {"unknown": 1},
        {"golden": {"path": "../g", "first_token_tolerance": 1, "later_tolerance": 1}},
        {"delta": {"since": "0" * 64, "name": "x", "needs": ["not/there"]}},
        {"adapters": [{"path": "/etc"}]},
    ],
)  # fmt: skip
def test_a_malformed_manifest_is_refused(
    write_bundle: Callable[..., Path], changes: dict[str, Any]
) -> None:
    with pytest.raises(InputError):
        verify_bundle(write_bundle(**changes), VerifySettings())


@settings(max_examples=40)
@given(st.binary(max_size=200) | ANY_JSON.map(lambda value: json.dumps(value).encode()))
def test_no_manifest_does_more_than_be_refused(data: bytes) -> None:
    with pytest.raises(EdgeAdaptError):
        parse_manifest(data)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(st.data())
def test_no_changed_field_does_more_than_be_refused(made: Path, data: st.DataObject) -> None:
    value = json.loads((made / "manifest.json").read_text())
    place: Any = value
    while isinstance(place, dict | list) and place:
        keys = sorted(place) if isinstance(place, dict) else range(len(place))
        key = data.draw(st.sampled_from(list(keys)))
        if data.draw(st.booleans()) or not isinstance(place[key], dict | list):
            place[key] = data.draw(ANY_JSON)
            break
        place = place[key]
    with contextlib.suppress(EdgeAdaptError):
        parse_manifest(json.dumps(value).encode())


def test_a_deeply_nested_manifest_is_refused() -> None:
    with pytest.raises(EdgeAdaptError):
        parse_manifest(b'{"a":' * 100_000)
    with pytest.raises(EdgeAdaptError):
        parse_manifest(b'{"schema_version":1,"merge":' + b"[" * 900 + b"]" * 900 + b"}")


def archive_of(path: Path, members: list[tuple[zipfile.ZipInfo | str, bytes]], **how: Any) -> Path:
    with zipfile.ZipFile(path, "w", **how) as archive:
        for member, content in members:
            archive.writestr(member, content)
    return path


def linked(name: str, target: str) -> tuple[zipfile.ZipInfo, bytes]:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info, target.encode()


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    "members",
    [
        [("../../outside", b"x")],
        [("/tmp/outside", b"x")],
        [linked("link", "/etc"), ("link/outside", b"x")],
        [("same", b"1"), ("same", b"2")],
        [("manifest.json", b"{}"), ("manifest.json", b"{}")],
        [("README.md", b"1"), ("readme.md", b"2")],
    ],
)
def test_archives_that_would_write_elsewhere_are_refused(
    tmp_path: Path, made: Path, members: list[Any]
) -> None:
    own = [(p.relative_to(made).as_posix(), p.read_bytes()) for p in sorted(made.rglob("*"))
           if p.is_file()]  # fmt: skip
    path = archive_of(tmp_path / "a.zip", [*own, *members])
    with pytest.raises(EdgeAdaptError):
        verify_bundle(path, VerifySettings(unpack=tmp_path / "out"))
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]
    assert not Path("/tmp/outside").exists()


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = archive_of(
        tmp_path / "a.zip", [("manifest.json", bytes(50 << 20))], compression=zipfile.ZIP_DEFLATED
    )
    assert path.stat().st_size < 100_000
    with pytest.raises(EdgeAdaptError):
        verify_bundle(path, VerifySettings())


def test_a_manifest_without_end_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "manifest.json").open("wb") as file:
        file.truncate(8 << 30)  # sparse
    with pytest.raises(CorruptFileError, match="expected at most"):
        verify_bundle(tmp_path, VerifySettings())


def test_an_archive_of_countless_members_is_refused(tmp_path: Path) -> None:
    members, offset = [], 0
    with (tmp_path / "a.zip").open("wb") as file:
        for number in range(10_002):
            members.append(Member(f"f{number}", 0, 0, offset))
            offset += file.write(local_header(members[-1]))
        file.write(directory(members, offset))
    with pytest.raises(CorruptFileError, match="more than"):
        verify_bundle(tmp_path / "a.zip", VerifySettings())


@pytest.mark.parametrize("size", [0xFFFFFFFE, (1 << 64) - 1])
def test_a_member_that_claims_more_than_is_there_is_refused(tmp_path: Path, size: int) -> None:
    (tmp_path / "a.zip").write_bytes(local_header(Member("manifest.json", size, 0, 0)) + b"{}")
    with pytest.raises(EdgeAdaptError):
        verify_bundle(tmp_path / "a.zip", VerifySettings())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(st.binary(max_size=300), st.booleans())
def test_no_archive_does_more_than_be_refused(tmp_path: Path, data: bytes, header: bool) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes((b"PK\x03\x04" if header else b"") + data)
    with pytest.raises(EdgeAdaptError):
        verify_bundle(path, VerifySettings())


def test_more_than_4_gib_is_written_as_python_reads_it() -> None:
    big = Member("big", 5 << 30, 123, 0)
    header = local_header(big)
    assert struct.unpack("<2I", header[18:26]) == (0xFFFFFFFF, 0xFFFFFFFF)
    after = Member("after", 2, 456, len(header) + big.size)
    start = after.offset + len(local_header(after)) + 2
    tail = directory([big, after], start)

    class Sparse(io.RawIOBase):  # zeros up to the directory
        position = 0

        def seekable(self) -> bool:
            return True

        def seek(self, offset: int, whence: int = 0) -> int:
            base = {0: 0, 1: self.position, 2: start + len(tail)}[whence]
            self.position = base + offset
            return self.position

        def tell(self) -> int:
            return self.position

        def read(self, size: int = -1) -> bytes:
            end = start + len(tail) if size < 0 else self.position + size
            found = tail[self.position - start : end - start]
            self.position += len(found)
            return found

    infos = zipfile.ZipFile(Sparse()).infolist()  # type: ignore[arg-type]
    assert [(i.filename, i.file_size, i.CRC, i.header_offset) for i in infos] == [
        ("big", big.size, 123, 0), ("after", 2, 456, after.offset),
    ]  # fmt: skip


def test_what_is_no_file_is_named(bundle: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("no named pipes here")
    os.mkfifo(bundle / "pipe")
    with pytest.raises(EdgeAdaptError, match="pipe is neither a file nor a folder"):
        verify_bundle(bundle, VerifySettings())


def test_opening_an_archive_reads_headers_only(made: Path, tmp_path: Path) -> None:
    from edgeadapt.bundle.archive import write_archive

    write_archive(made, tmp_path / "a.zip")
    expected = {p.relative_to(made).as_posix() for p in made.rglob("*") if p.is_file()}
    assert set(Archive(tmp_path / "a.zip").sizes()) == expected
