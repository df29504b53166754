"""The whole of `edgeadapt push`, read from top to bottom."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from edgeadapt.bundle.container import Container, open_container, sums
from edgeadapt.bundle.integrity import check_files, read_manifest, refusal
from edgeadapt.bundle.manifest import UNLISTED, Manifest
from edgeadapt.console import progress
from edgeadapt.errors import InputError
from edgeadapt.extras import need
from edgeadapt.registry.artifact import (
    EMPTY_CONFIG,
    EMPTY_CONFIG_SHA256,
    Layer,
    artifact_bytes,
)
from edgeadapt.registry.reference import OciReference, parse_reference


def push_bundle(path: Path, reference: str, *, insecure: bool = False) -> dict[str, Any]:
    """Send a bundle to a registry or hub, after checking it; what is there already is not sent.

    Nothing is seen under the tag or branch before everything is there.

    Returns:
        As JSON: `reference`, `pinned` (by digest or commit), `manifest_sha256`, `files`, `bytes`,
        `sent_files` and `sent_bytes` (None where the hub's library decides), `deleted`.

    Raises:
        InputError: the reference or the bundle is none, or the registry refuses.
        GateFailure: the bundle was changed.
        MissingExtraError: the registry's library is not installed.
        HostFailure: the registry is not to be reached, or failed.
    """
    where = parse_reference(reference)
    container = open_container(path)
    manifest, digest = read_manifest(container)
    findings = check_files(container, manifest)
    if findings.sentences():
        raise refusal(findings)
    sizes = container.sizes()
    record = {
        "reference": str(where),
        "manifest_sha256": digest,
        "files": len(sizes),
        "bytes": sum(sizes.values()),
        "deleted": [],
    }
    if isinstance(where, OciReference):
        return record | _push_oci(container, manifest, where, insecure)
    from edgeadapt.registry.hub import push_to_hub

    return record | push_to_hub(container, manifest, where)


def layers_of(container: Container, manifest: Manifest) -> list[Layer]:
    """Every file of a checked bundle."""
    layers = []
    for name, size in sorted(container.sizes().items()):
        listed = name not in UNLISTED
        sha256 = manifest.files[name].sha256 if listed else sums(container.chunks(name)).sha256
        layers.append(Layer(name, size, sha256))
    return layers


def _push_oci(
    container: Container, manifest: Manifest, where: OciReference, insecure: bool
) -> dict[str, Any]:
    need("oras", "pushing to a registry")
    from edgeadapt.registry.oci import OciRegistry

    if where.digest is not None:
        raise InputError(f"{where} has a digest, which follows from the bundle; give only a tag")
    layers = layers_of(container, manifest)
    data = artifact_bytes(manifest.name, layers)
    registry = OciRegistry(where, insecure=insecure)
    registry.connect()
    sent: list[Layer] = []
    with progress("pushing", sum(layer.size for layer in layers) / 1e6, "MB") as advance:
        for layer in layers:
            if not registry.has_blob(layer.sha256):
                content = functools.partial(container.chunks, layer.name)
                registry.upload(layer.sha256, layer.size, content)
                sent.append(layer)
            advance(layer.size / 1e6)
        if not registry.has_blob(EMPTY_CONFIG_SHA256):
            registry.upload(EMPTY_CONFIG_SHA256, len(EMPTY_CONFIG), lambda: iter((EMPTY_CONFIG,)))
        digest = registry.put_manifest(data)
    return {
        "pinned": where.pinned(digest),
        "sent_files": len(sent),
        "sent_bytes": sum(layer.size for layer in sent),
    }
