"""The whole of `edgeadapt verify`, read from top to bottom."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeadapt.bundle.archive import lay_out
from edgeadapt.bundle.container import Container, Folder, open_container, read_file
from edgeadapt.bundle.integrity import (
    check_base,
    check_files,
    is_signed,
    read_manifest,
    refusal,
)
from edgeadapt.bundle.manifest import LARGEST, Manifest
from edgeadapt.console import log
from edgeadapt.errors import GateFailure, InputError, MissingExtraError
from edgeadapt.files import atomic_folder, check_disk
from edgeadapt.leftovers import scratch

if TYPE_CHECKING:
    from edgeadapt.bundle.golden import GoldenDocument
    from edgeadapt.bundle.signing import Trust


@dataclass(frozen=True)
class VerifySettings:
    """What to check beyond the files."""

    base: Path | None = None
    digest: str | None = None
    """SHA-256 that manifest.json has to have."""
    trust: Trust | None = None
    """Whose signature has to be there."""
    run: bool = False
    runtime: str | None = None
    """Only this one."""
    unpack: Path | None = None
    """Where to lay the whole bundle out, once it is checked."""


def verify_bundle(path: Path, settings: VerifySettings) -> dict[str, Any]:
    """Check a bundle; returns what it is and what was checked, as JSON.

    Raises:
        GateFailure: a file, the signature, the base or an answer is not as it should be; names it.
        InputError: it is no bundle, or a delta without its base.
        CorruptFileError: it is malformed or hostile.
    """
    if settings.trust is not None:
        settings.trust.check()
    container = open_container(path)
    manifest, digest = read_manifest(container)
    if settings.digest is not None and settings.digest.lower() != digest:
        raise GateFailure(
            f"manifest.json has sha256 {digest}, expected {settings.digest.lower()}: this is "
            "another bundle",
            {"passed": False, "failed_gates": ["digest"], "gates": []},
        )
    findings = check_files(container, manifest)
    if findings.sentences():
        raise refusal(findings)
    base = open_container(settings.base) if settings.base is not None else None
    missing = [name for name in manifest.files if name not in container.sizes()]
    if missing or base is not None:
        findings = check_base(manifest, base)
    if findings.sentences():
        raise refusal(findings)
    record = _record(path, manifest, digest, container)
    if settings.trust is not None:
        with as_folder(container, manifest, None) as folder:
            settings.trust.verify(folder)
        record["signature"] = "valid"
    if settings.run:
        with as_folder(container, manifest, base) as folder:
            record["replayed"] = _replay(folder, manifest, container, base, settings.runtime)
    if settings.unpack is not None:
        _unpack(container, manifest, base, settings.unpack)
        record["unpacked"] = str(settings.unpack)
    return record


def _record(path: Path, manifest: Manifest, digest: str, container: Container) -> dict[str, Any]:
    return {
        "path": str(path),
        "name": manifest.name,
        "manifest_sha256": digest,
        "files": len(manifest.shipped),
        "bytes": sum(entry.size for entry in manifest.shipped.values()),
        "variants": [
            {"name": variant.name, "path": variant.path, "devices": list(variant.devices)}
            for variant in manifest.variants
        ],
        "forced": list(manifest.forced),
        "signature": "not checked" if is_signed(container) else "none",
        "replayed": None,
        "passed": True,
    }


@contextlib.contextmanager
def as_folder(container: Container, manifest: Manifest, base: Container | None) -> Iterator[Path]:
    """The files where engines and libraries find them; a folder of its own unless they lie so."""
    if isinstance(container, Folder) and base is None:
        yield container.path
        return
    with scratch("verify") as place:
        check_disk(place / "x", sum(entry.size for entry in manifest.files.values()))
        lay_out(container, manifest, base, place)
        yield place


def _unpack(container: Container, manifest: Manifest, base: Container | None, out: Path) -> None:
    check_disk(out, sum(entry.size for entry in manifest.files.values()))
    with atomic_folder(out) as partial:
        lay_out(container, manifest, base, partial)


def _replay(
    folder: Path,
    manifest: Manifest,
    container: Container,
    base: Container | None,
    runtime: str | None,
) -> list[dict[str, Any]]:
    """Every variant on every runtime that is installed here."""
    from edgeadapt.bundle import golden

    if manifest.golden is None:
        raise InputError("this bundle has no golden vectors to replay; leave --run out")
    name = manifest.golden.path
    holder = base if base is not None and name not in container.sizes() else container
    document = golden.parse_golden(read_file(holder, name, LARGEST))
    results, missing = _replay_all(folder, manifest, document, runtime)
    if not results:
        raise (
            missing[0]
            if missing
            else InputError(f"no variant of this bundle runs on {runtime}; leave --runtime out")
        )
    for error in missing:
        log.warning("not replayed: %s", error)
    problems = [
        f"  {row['variant']} on {row['runtime']}: {problem}"
        for row in results
        for problem in row["problems"]
    ]
    if problems:
        record = {"passed": False, "failed_gates": ["golden"], "gates": [], "replayed": results}
        raise GateFailure("\n".join(["it does not say what it said:", *problems]), record)
    return results


def _replay_all(
    folder: Path, manifest: Manifest, document: GoldenDocument, runtime: str | None
) -> tuple[list[dict[str, Any]], list[MissingExtraError]]:
    from edgeadapt.bundle import golden
    from edgeadapt.runtimes.registry import installed_runtimes

    tolerances = document.first_token_tolerance, document.later_tolerance
    results: list[dict[str, Any]] = []
    missing: list[MissingExtraError] = []
    for variant in manifest.variants:
        recorded = document.variants.get(variant.name)
        if recorded is None:
            raise InputError(f"the golden vectors do not have the variant {variant.name}")
        try:
            installed = installed_runtimes(variant.format)
        except MissingExtraError as error:
            missing.append(error)
            continue
        for name in installed:
            if runtime in (None, name):
                first = next(iter(recorded.runtimes.values()))
                found = golden.replay(
                    folder / variant.path, recorded.runtimes.get(name, first), name, tolerances
                )
                results.append({"variant": variant.name} | found)
    return results, missing
