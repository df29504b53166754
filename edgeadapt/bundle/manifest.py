"""`manifest.json`: every file of a bundle, where the models came from, and what they measured.

`python -m edgeadapt.bundle.manifest` prints the JSON schema; docs/manifest.schema.json holds it.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from edgeadapt.bundle.names import check_name, check_names
from edgeadapt.errors import CorruptFileError, InputError
from edgeadapt.yaml_model import validated

MANIFEST = "manifest.json"
DIGEST = "manifest.sha256"
SCHEMA = "manifest.schema.json"
SIGNATURE = "model.sig"
SIGNATURE_DIGEST = "model.sig.sha256"
UNLISTED = (MANIFEST, DIGEST, SIGNATURE, SIGNATURE_DIGEST)
"""Files that a manifest cannot list: itself, what signs all, and the digests of these two."""
SCHEMA_VERSION: Literal[1] = 1
LARGEST = 16 << 20
"""Bytes of a manifest; one that lists `MOST_FILES` files stays below."""

Sha256 = Field(pattern=r"^[0-9a-f]{64}$")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FileEntry(_Model):
    """One file."""

    size: int = Field(ge=0, le=1 << 50, description="bytes")
    sha256: str = Sha256


class Origin(_Model):
    """The base that a model was made from."""

    name: str
    revision: str | None = Field(None, description="of a hub id, where one was asked for")
    sha256: str = Field(description="over config.json and the weight files")
    license: str | None = Field(None, description="as the base's own files name it")
    license_files: tuple[str, ...] = ()


class AdapterEntry(_Model):
    """The adapter that taught the base."""

    name: str | None = None
    method: str | None = None
    rank: int | None = None
    alpha: float | None = None
    sha256: str | None = Field(None, description="of its weights")
    path: str | None = Field(None, description="its folder in the bundle")
    data_sha256: str | None = Field(None, description="of what it was trained on")
    steps: int | None = None


class Gate(_Model):
    """One gate's verdict on one runtime."""

    gate: str
    figure: float | None = Field(description="null where a gate has no number to show")
    limit: float | bool
    passed: bool
    note: str = ""


class TensorType(_Model):
    """How many tensors are stored in a type."""

    tensors: int = Field(ge=0)
    bytes: int = Field(ge=0)


class MeasuredOn(_Model):
    """One benchmark run of a variant."""

    runtime: str
    runtime_version: str
    machine: str = Field(description="the CPU that ran it")
    threads: int
    load_s: float
    ttft_s: float = Field(description="to the first token of `prompt_tokens`, median")
    prompt_tokens: int
    prefill_tps: float
    decode_tps: float
    peak_anonymous: int | None = Field(description="bytes that must be in RAM")
    peak_rss: int | None = Field(description="bytes")


class Variant(_Model):
    """A model in one format and quantization."""

    name: str
    format: Literal["gguf", "onnx"]
    quantization: str
    path: str = Field(description="what a runtime loads: a file, or a folder")
    bytes: int = Field(ge=0)
    sha256: str = Sha256
    devices: dict[str, str] = Field(description="device profile -> why this variant is for it")
    tensor_types: dict[str, TensorType] = Field(default={}, description="GGUF: by ggml type")
    lineage: dict[str, JsonValue] = {}
    gates: dict[str, tuple[Gate, ...]] = Field(description="by runtime")
    passed: bool = Field(description="there are verdicts, and every one is good")
    measurements: tuple[MeasuredOn, ...] = ()
    context: int | None = Field(None, description="tokens that the model was made for")
    system: str | None = Field(
        None, description="system message of its training, for conversations to begin with"
    )


class Golden(_Model):
    """Where the golden vectors are, and how close a runtime has to come."""

    path: str
    first_token_tolerance: float = Field(gt=0, description="of log-probabilities, nats")
    later_tolerance: float = Field(gt=0, description="of the tokens after it, nats")


class Delta(_Model):
    """Files that this bundle leaves to an older one, which has to be there."""

    since: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the older manifest.json")
    name: str
    needs: tuple[str, ...] = Field(description="names in `files`, the same in the older bundle")


class Manifest(_Model):
    """All that a bundle says of itself."""

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str
    base: Origin
    adapters: tuple[AdapterEntry, ...] = ()
    merge: dict[str, JsonValue] | None = Field(
        None, description="what the adapter was merged onto, and the figures that decided it"
    )
    calibration_sha256: str | None = Field(
        None, description="of the importance matrix or the data that chose the types"
    )
    variants: tuple[Variant, ...] = Field(min_length=1)
    tools: dict[str, str] = Field(description="package -> version, of what made the models")
    forced: tuple[str, ...] = Field(
        (), description="failed or missing gates that --force overrode; empty: all were kept"
    )
    golden: Golden | None = None
    delta: Delta | None = None
    files: dict[str, FileEntry] = Field(
        description=f"every file but {', '.join(UNLISTED)}, with those left to an older bundle"
    )

    @property
    def shipped(self) -> dict[str, FileEntry]:
        """The files that have to be in the bundle itself."""
        needs = set(self.delta.needs) if self.delta else set()
        return {name: entry for name, entry in self.files.items() if name not in needs}


def manifest_bytes(manifest: Manifest) -> bytes:
    """The one way to write a manifest down."""
    value = manifest.model_dump(mode="json")
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def digest_bytes(content: bytes, name: str = MANIFEST) -> bytes:
    """Content of manifest.sha256, or of another file's digest, as `sha256sum` writes it."""
    return f"{hashlib.sha256(content).hexdigest()}  {name}\n".encode()


def parse_manifest(data: bytes) -> Manifest:
    """Check a manifest that may come from anybody.

    Raises:
        CorruptFileError: it is not one; names the first field that is wrong.
        InputError: it is of a later version.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{MANIFEST} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CorruptFileError(f"{MANIFEST} holds {type(value).__name__}, expected an object")
    found = value.get("schema_version")
    if found != SCHEMA_VERSION:
        raise InputError(
            f"{MANIFEST} has schema version {found!r:.20}, this edgeadapt reads {SCHEMA_VERSION}; "
            "update edgeadapt, or have the bundle made again"
        )
    manifest = validated(value, MANIFEST, Manifest)
    _check_paths(manifest)
    return manifest


def _check_paths(manifest: Manifest) -> None:
    check_names([*manifest.files, *UNLISTED])
    folders = {name.rsplit("/", depth)[0] for name in manifest.files for depth in range(1, 13)}
    named = [variant.path for variant in manifest.variants]
    named += [adapter.path for adapter in manifest.adapters if adapter.path is not None]
    named += [manifest.golden.path] if manifest.golden else []
    named += manifest.base.license_files
    for path in named:
        if check_name(path) not in manifest.files and path not in folders:
            raise CorruptFileError(f"{MANIFEST} speaks of {path}, which is not among its files")
    missing = set(manifest.delta.needs) - set(manifest.files) if manifest.delta else set()
    if missing:
        raise CorruptFileError(
            f"{MANIFEST} needs {min(missing)} of an older bundle, and does not list it"
        )


def json_schema() -> dict[str, Any]:
    """JSON schema of a manifest."""
    schema = Manifest.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema


def schema_text() -> str:
    """The schema as it is published."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    from edgeadapt.console import emit

    emit(schema_text().rstrip())
