"""Whether a bundle is what its manifest says, file by file and byte by byte."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from edgeadapt.bundle.container import Container, read_file, sums
from edgeadapt.bundle.manifest import (
    DIGEST,
    LARGEST,
    MANIFEST,
    SIGNATURE,
    SIGNATURE_DIGEST,
    UNLISTED,
    FileEntry,
    Manifest,
    digest_bytes,
    parse_manifest,
)
from edgeadapt.errors import GateFailure, InputError


@dataclass
class Findings:
    """What differs from the manifest; all empty: nothing."""

    changed: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    """Name in the manifest -> name that it has now."""
    other: list[str] = field(default_factory=list)
    """Sentences on what is no file."""

    def sentences(self) -> list[str]:
        """One for each difference."""
        return [
            *(f"{name} was changed" for name in self.changed),
            *(f"{old} was renamed to {new}" for old, new in self.renamed.items()),
            *(f"{name} is missing" for name in self.removed),
            *(f"{name} was added" for name in self.added),
            *self.other,
        ]

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "changed": self.changed,
            "added": self.added,
            "removed": self.removed,
            "renamed": self.renamed,
            "other": self.other,
        }


def read_manifest(container: Container) -> tuple[Manifest, str]:
    """The manifest and its SHA-256; nothing is parsed whose digest is not the one beside it.

    Raises:
        GateFailure: the manifest or its digest was changed.
        InputError: there is none.
        CorruptFileError: it is not one.
    """
    data = read_file(container, MANIFEST, LARGEST)
    expected = digest_bytes(data)
    if DIGEST not in container.sizes():
        raise refusal(Findings(removed=[DIGEST]))
    if read_file(container, DIGEST, LARGEST) != expected:
        found = Findings(other=[f"{MANIFEST} or {DIGEST} was changed: they do not belong together"])
        raise refusal(found)
    return parse_manifest(data), expected[:64].decode()


def refusal(findings: Findings) -> GateFailure:
    """The error that names every difference."""
    lines = [f"  {line}" for line in findings.sentences()]
    record = {"passed": False, "failed_gates": ["integrity"], "gates": []} | findings.record()
    return GateFailure("\n".join(["this is not the bundle that was made:", *lines]), record)


def check_files(container: Container, manifest: Manifest) -> Findings:
    """Compare every file with the manifest.

    A file that a delta leaves to an older bundle may be there too, and is then checked as well.
    """
    findings = Findings()
    sizes, shipped = container.sizes(), manifest.shipped
    for name, entry in manifest.files.items():
        if name not in sizes:
            if name in shipped and name not in container.odd:
                findings.removed.append(name)
        elif not _same(container, name, entry, sizes[name]):
            findings.changed.append(name)
    known = {*manifest.files, *UNLISTED}
    findings.added = sorted(set(sizes) - known)
    findings.other = [f"{name} {what}" for name, what in sorted(container.odd.items())]
    findings.other += _signature_problems(container)
    _find_renamed(container, manifest, findings)
    if not findings.sentences() and (problem := container.frame_problem()):
        findings.other.append(problem)
    return findings


def _signature_problems(container: Container) -> list[str]:
    """Whether the signature is the one that was written; whose it is, is another question."""
    there = [name for name in (SIGNATURE, SIGNATURE_DIGEST) if name in container.sizes()]
    if len(there) == 1:
        other = SIGNATURE if there == [SIGNATURE_DIGEST] else SIGNATURE_DIGEST
        return [f"{other} is missing"]
    if there:
        expected = digest_bytes(read_file(container, SIGNATURE, LARGEST), SIGNATURE)
        if read_file(container, SIGNATURE_DIGEST, LARGEST) != expected:
            return [f"{SIGNATURE} or {SIGNATURE_DIGEST} was changed: they do not belong together"]
    return []


def _same(container: Container, name: str, entry: FileEntry, size: int) -> bool:
    return size == entry.size and sums(container.chunks(name)).sha256 == entry.sha256


def _find_renamed(container: Container, manifest: Manifest, findings: Findings) -> None:
    """Pair what is missing with what was added and has its content."""
    sizes = container.sizes()
    for old in list(findings.removed):
        entry = manifest.files[old]
        new = next((n for n in findings.added if _same(container, n, entry, sizes[n])), None)
        if new is not None:
            findings.removed.remove(old)
            findings.added.remove(new)
            findings.renamed[old] = new


def check_base(manifest: Manifest, base: Container | None) -> Findings:
    """Whether the older bundle that a delta needs is the one that is there.

    Raises:
        InputError: the delta needs one, and none was given; or one was given and none is needed.
        GateFailure: what was given was changed itself.
    """
    if manifest.delta is None:
        if base is not None:
            raise InputError("this bundle is whole and needs no --base")
        return Findings()
    if base is None:
        raise InputError(
            f"this bundle holds only what changed since {manifest.delta.name} (manifest sha256 "
            f"{manifest.delta.since[:12]}...); give that one with --base"
        )
    older, digest = read_manifest(base)
    if digest != manifest.delta.since:
        return Findings(
            other=[
                f"{base.path} is not the bundle that this one builds on: its manifest has sha256 "
                f"{digest[:12]}..., expected {manifest.delta.since[:12]}..."
            ]
        )
    findings = Findings()
    sizes = base.sizes()
    for name in manifest.delta.needs:
        entry = manifest.files[name]
        if older.files.get(name) != entry or not _same(base, name, entry, sizes.get(name, -1)):
            findings.other.append(f"{name} in {base.path} is not the file that this bundle needs")
    return findings


def is_signed(container: Container) -> bool:
    """Whether a signature lies beside the files; it says nothing before it is checked."""
    return SIGNATURE in container.sizes()
