"""The whole of `edgeadapt pull`, read from top to bottom.

What comes from a registry is believed no more than a ZIP file from anywhere. The bundle's own
manifest comes first; only files that it lists are fetched, to names that are safe, no byte more
than it says, into a folder that gets its name when all of it was checked.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edgeadapt.bundle.archive import write_archive
from edgeadapt.bundle.container import open_container
from edgeadapt.bundle.integrity import read_manifest
from edgeadapt.bundle.manifest import (
    DIGEST,
    LARGEST,
    MANIFEST,
    SIGNATURE,
    SIGNATURE_DIGEST,
    FileEntry,
    Manifest,
)
from edgeadapt.bundle.verify import VerifySettings, verify_bundle
from edgeadapt.console import progress
from edgeadapt.errors import CorruptFileError, GateFailure, InputError
from edgeadapt.extras import need
from edgeadapt.files import check_disk, fsync, publish, staged
from edgeadapt.registry.artifact import parse_artifact
from edgeadapt.registry.reference import OciReference, parse_reference

_ZIP = ".zip"


class Source(Protocol):
    """A bundle where it is kept."""

    files: dict[str, tuple[int, str | None]]
    """Size in bytes, and SHA-256 where the source tells it, of every file there, by name."""
    others: bool
    """Whether files that are none of the bundle's may lie beside it."""
    pinned: str
    """The reference that always means these bytes."""

    def fetch(self, name: str, most: int, place: Path) -> Iterator[int]:
        """Write a file that is in `files` to a place that is free; yields bytes as they come.

        Raises:
            GateFailure: it is not what the source itself says it is.
            HostFailure: the connection broke, or more than `most` bytes came.
        """


@dataclass(frozen=True)
class PullSettings:
    """How to reach the registry, and what to check beyond the files."""

    insecure: bool = False
    """Plain http to any host."""
    checks: VerifySettings = dataclasses.field(default_factory=VerifySettings)


def pull_bundle(reference: str, out: Path, settings: PullSettings) -> dict[str, Any]:
    """Fetch a bundle, check it as `verify` does, and only then give it its name.

    Args:
        reference: `oci://...` or `hf://...`.
        out: the folder to make, or archive if it ends in .zip.
        settings: what to check.

    Returns:
        As JSON: what `verify_bundle` returns, with `reference` and `pinned`.

    Raises:
        GateFailure: it is not the bundle that was made, or not signed as it should be.
        InputError: there is no bundle, `out` exists, or the registry refuses.
        CorruptFileError: it is malformed or hostile.
        MissingExtraError: the registry's library is not installed.
        HostFailure: the registry is not to be reached, or failed.
    """
    where = parse_reference(reference)
    if settings.checks.trust is not None:
        settings.checks.trust.check()
    with staged(out) as place:
        folder = place.parent / "content"
        folder.mkdir()
        if isinstance(where, OciReference):
            source: Source = _OciSource(where, settings.insecure)
        else:
            from edgeadapt.registry.hub import HubSource

            source = HubSource(where, place.parent / "arriving")
        _fetch_all(source, folder, out)
        checks = settings.checks
        if checks.base is not None:  # what a delta leaves to its base comes from there
            checks = dataclasses.replace(checks, unpack=place.parent / "whole")
        record = verify_bundle(folder, checks)
        folder = checks.unpack or folder
        if out.suffix == _ZIP:
            write_archive(folder, place)
        else:
            folder.rename(place)
        publish([place], out.parent)
    record.pop("unpacked", None)
    return record | {"path": str(out), "reference": str(where), "pinned": source.pinned}


def _fetch_all(source: Source, folder: Path, out: Path) -> None:
    for name in (MANIFEST, DIGEST):
        if name not in source.files:
            raise InputError(f"{source.pinned} has no {name}: it is no edgeadapt bundle")
        for _ in _arriving(source, name, None, folder):
            pass
    manifest, _ = read_manifest(open_container(folder))
    wanted = _agreed(source, manifest)
    total = sum(entry.size for entry in manifest.shipped.values())
    check_disk(out, total * (2 if out.suffix == _ZIP else 1))
    with progress("pulling", total / 1e6, "MB") as advance:
        for name, entry in sorted(wanted.items()):
            for amount in _arriving(source, name, entry, folder):
                advance(amount / 1e6)


def _agreed(source: Source, manifest: Manifest) -> dict[str, FileEntry | None]:
    """What is still to fetch: what the manifest lists, and the signature if there is one.

    What a delta leaves to its base, and is there all the same, comes too.

    Raises:
        GateFailure: what the source names is not what the manifest lists; nothing is fetched.
    """
    here = source.files
    wanted: dict[str, FileEntry | None] = {n: e for n, e in manifest.files.items() if n in here}
    wanted |= {name: None for name in (SIGNATURE, SIGNATURE_DIGEST) if name in here}
    problems = [
        f"{name} was changed"
        for name, entry in wanted.items()
        if entry and (here[name][0] != entry.size or here[name][1] not in (None, entry.sha256))
    ]
    problems += [f"{name} is missing" for name in sorted(set(manifest.shipped) - set(here))]
    if not source.others:
        added = set(here) - set(wanted) - {MANIFEST, DIGEST}
        problems += [f"{name} was added" for name in sorted(added)]
    if problems:
        raise refused(source.pinned, problems)
    return wanted


def refused(pinned: str, problems: list[str]) -> GateFailure:
    """The error that names every difference."""
    record = {"passed": False, "failed_gates": ["integrity"], "gates": [], "other": problems}
    lines = [f"{pinned} is not the bundle that was made:", *(f"  {line}" for line in problems)]
    return GateFailure("\n".join(lines), record)


def _arriving(source: Source, name: str, entry: FileEntry | None, folder: Path) -> Iterator[int]:
    """Fetch a file; yields bytes as they come."""
    size, _ = source.files[name]
    if entry is None and size > LARGEST:
        raise CorruptFileError(f"{name} has {size} bytes, expected at most {LARGEST}")
    place = folder / name
    place.parent.mkdir(parents=True, exist_ok=True)
    yield from source.fetch(name, size, place)
    if place.stat().st_size != size:
        raise refused(source.pinned, [f"{name} is cut off"])
    fsync(place)


class _OciSource:
    """A bundle in an OCI registry."""

    others = False

    def __init__(self, where: OciReference, insecure: bool) -> None:
        need("oras", "pulling from a registry")
        from edgeadapt.registry.oci import OciRegistry

        self._registry = OciRegistry(where, insecure=insecure)
        self._registry.connect()
        data, digest = self._registry.manifest()
        self.pinned = where.pinned(digest)
        try:
            layers = parse_artifact(data)
        except InputError as error:
            raise type(error)(f"{where}: {error}") from error
        self.files: dict[str, tuple[int, str | None]] = {
            name: (layer.size, layer.sha256) for name, layer in layers.items()
        }

    def fetch(self, name: str, most: int, place: Path) -> Iterator[int]:
        """See `Source`."""
        sha256 = self.files[name][1]
        assert sha256 is not None
        digest = hashlib.sha256()
        with place.open("xb") as file:
            for chunk in self._registry.blob(sha256, most):
                file.write(chunk)
                digest.update(chunk)
                yield len(chunk)
        if digest.hexdigest() != sha256:
            raise refused(self.pinned, [f"{name} was changed or is cut off"])
