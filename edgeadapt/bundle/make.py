"""The whole of `edgeadapt bundle`, read from top to bottom."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeadapt.bundle.archive import write_archive
from edgeadapt.bundle.choose import check_gates, choose_variants
from edgeadapt.bundle.container import open_container
from edgeadapt.bundle.contents import assemble
from edgeadapt.bundle.facts import made_variant
from edgeadapt.bundle.integrity import check_files, read_manifest, refusal
from edgeadapt.bundle.manifest import (
    DIGEST,
    MANIFEST,
    Delta,
    Manifest,
    digest_bytes,
    manifest_bytes,
)
from edgeadapt.bundle.run_folder import read_run
from edgeadapt.bundle.signing import Signer
from edgeadapt.bundle.texts import Content
from edgeadapt.console import log
from edgeadapt.errors import InputError
from edgeadapt.files import atomic_folder, check_disk, publish, sha256_file, staged

_ZIP = ".zip"


@dataclass(frozen=True)
class BundleSettings:
    """What to put into a bundle, and how."""

    devices: tuple[str, ...] = ()
    force: bool = False
    since: Path | None = None
    signer: Signer | None = None
    golden: bool = True


def make_bundle(run_folder: Path, out: Path, settings: BundleSettings) -> dict[str, Any]:
    """Bundle what a run made, as a folder, or as a ZIP archive if `out` ends in .zip.

    Returns:
        As JSON: `path`, `bytes`, `files`, `manifest_sha256`, `variants`, `forced`, `needs` and
        `signed`.

    Raises:
        InputError: the run is incomplete, has nothing for a device, or `out` exists.
        GateFailure: an artifact failed a gate, and `force` was not given.
    """
    run = read_run(run_folder)
    chosen = choose_variants(run, settings.devices)
    forced = check_gates(chosen, force=settings.force)
    if settings.signer is not None:
        settings.signer.check()
    older = _older(settings.since) if settings.since is not None else None
    if out.exists():
        raise InputError(f"{out} exists already; choose another --out, or remove it first")
    for line in forced:
        log.warning("shipping all the same, as asked: %s", line)
    made = [made_variant(run, variant) for variant in chosen]
    manifest, contents = assemble(run, run_folder, made, forced, with_golden=settings.golden)
    if older is not None:
        manifest, contents = _only_changed(manifest, contents, *older)
    with _folder_for(out, manifest) as folder:
        _write(folder, manifest, contents)
        if settings.signer is not None:
            settings.signer.sign(folder)
    return _record(out, manifest, settings)


def _older(path: Path) -> tuple[Manifest, str, str]:
    """An older bundle's manifest, its digest, and what to call it.

    Raises:
        InputError: it is a delta itself.
        GateFailure: it is not whole.
    """
    container = open_container(path)
    manifest, digest = read_manifest(container)
    if manifest.delta is not None:
        raise InputError(f"{path} holds only changes itself; give --since a whole bundle")
    findings = check_files(container, manifest)
    if findings.sentences():
        raise refusal(findings)
    return manifest, digest, path.name


def _only_changed(
    manifest: Manifest, contents: dict[str, Content], older: Manifest, digest: str, name: str
) -> tuple[Manifest, dict[str, Content]]:
    same = tuple(sorted(n for n, entry in manifest.files.items() if older.files.get(n) == entry))
    delta = Delta(since=digest, name=name, needs=same)
    changed = {n: content for n, content in contents.items() if n not in set(same)}
    return manifest.model_copy(update={"delta": delta}), changed


@contextlib.contextmanager
def _folder_for(out: Path, manifest: Manifest) -> Iterator[Path]:
    """A folder to fill, that becomes `out` at the end."""
    total = sum(entry.size for entry in manifest.shipped.values())
    if out.suffix != _ZIP:
        check_disk(out, total)
        with atomic_folder(out) as folder:
            yield folder
        return
    check_disk(out, 2 * total)
    with staged(out) as place:
        folder = place.parent / "content"
        folder.mkdir()
        yield folder
        write_archive(folder, place)
        publish([place], out.parent)


def _write(folder: Path, manifest: Manifest, contents: dict[str, Content]) -> None:
    for name, content in contents.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            place.write_bytes(content)
        else:
            shutil.copyfile(content, place)
    data = manifest_bytes(manifest)
    (folder / MANIFEST).write_bytes(data)
    (folder / DIGEST).write_bytes(digest_bytes(data))


def _record(out: Path, manifest: Manifest, settings: BundleSettings) -> dict[str, Any]:
    plain = out.is_file()
    total = out.stat().st_size if plain else sum(p.stat().st_size for p in _files(out))
    return {
        "path": str(out),
        "bytes": total,
        "sha256": sha256_file(out) if plain else None,
        "files": len(manifest.shipped),
        "manifest_sha256": digest_bytes(manifest_bytes(manifest))[:64].decode(),
        "variants": [
            {"name": variant.name, "path": variant.path, "devices": list(variant.devices)}
            for variant in manifest.variants
        ],
        "forced": list(manifest.forced),
        "needs": len(manifest.delta.needs) if manifest.delta else 0,
        "signed": settings.signer is not None,
    }


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
