"""A bundle as an OCI artifact: one layer for each file, whose title is the file's name.

The manifest follows the OCI image specification 1.1, "Guidelines for Artifact Usage", case 2:
an `artifactType`, the empty config, and layers. It is a function of the bundle alone, so the same
bundle has the same digest wherever and whenever it is pushed. `oras pull` reads it too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, Field

from edgeadapt.bundle.names import MOST_FILES, check_names
from edgeadapt.errors import CorruptFileError, InputError
from edgeadapt.yaml_model import validated

ARTIFACT_TYPE = "application/vnd.edgeadapt.bundle.v1"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
EMPTY_CONFIG = b"{}"
EMPTY_CONFIG_SHA256 = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
LARGEST = 4 << 20
"""Bytes of a manifest: registries need not take more (distribution specification, "Push")."""

_CONFIG_TYPE = "application/vnd.oci.empty.v1+json"
_LAYER_TYPE = "application/octet-stream"
_TITLE = "org.opencontainers.image.title"


@dataclass(frozen=True)
class Layer:
    """A file of a bundle."""

    name: str
    size: int
    sha256: str


class _Descriptor(BaseModel):
    digest: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")
    size: int = Field(ge=0, le=1 << 50, strict=True)
    annotations: dict[str, str] = {}


class _Document(BaseModel):
    layers: list[_Descriptor] = Field(max_length=MOST_FILES)


def artifact_bytes(title: str, layers: Sequence[Layer]) -> bytes:
    """The one manifest of a bundle with these files.

    Raises:
        InputError: it is larger than registries take.
    """
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": ARTIFACT_TYPE,
        "config": _descriptor(_CONFIG_TYPE, EMPTY_CONFIG_SHA256, len(EMPTY_CONFIG)),
        "layers": [
            _descriptor(_LAYER_TYPE, layer.sha256, layer.size)
            | {"annotations": {_TITLE: layer.name}}
            for layer in sorted(layers, key=lambda layer: layer.name)
        ],
        "annotations": {_TITLE: title},
    }
    data = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    if len(data) > LARGEST:
        raise InputError(
            f"a bundle of {len(layers)} files needs a manifest of {len(data)} bytes, and "
            f"registries take {LARGEST}; push it to a Hugging Face repository instead"
        )
    return data


def _descriptor(media_type: str, sha256: str, size: int) -> dict[str, object]:
    return {"mediaType": media_type, "digest": f"sha256:{sha256}", "size": size}


def parse_artifact(data: bytes) -> dict[str, Layer]:
    """The files that a manifest from anywhere names, by name.

    Raises:
        InputError: it is of something else than a bundle.
        CorruptFileError: it is malformed, or names files that do not fit into one folder.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"its manifest is not JSON: {error}") from error
    kind = value.get("artifactType") if isinstance(value, dict) else None
    if kind != ARTIFACT_TYPE:
        told = f"artifactType {kind!r:.60}" if kind else "no artifactType, as container images"
        raise InputError(
            f"it is no edgeadapt bundle: it has {told}, expected {ARTIFACT_TYPE!r}; push one "
            "with `edgeadapt push`"
        )
    document = validated(value, "its manifest", _Document)
    names = [layer.annotations.get(_TITLE, "") for layer in document.layers]
    check_names(names)
    return {
        name: Layer(name, layer.size, layer.digest.removeprefix("sha256:"))
        for name, layer in zip(names, document.layers, strict=True)
    }
