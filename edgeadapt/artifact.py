"""What an export leaves behind: files of one format, their hashes and where they came from.

A GGUF artifact is one file and carries its lineage in its own metadata (keys `edgeadapt.*`).
Every other artifact is a folder with a manifest, `edgeadapt.json`, of the kind `artifact`. What
training leaves in a file of that name is of the kind `training`.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from edgeadapt.adapters.spec import trained_system
from edgeadapt.errors import CorruptFileError, InputError
from edgeadapt.files import read_json, sha256_file, sha256_json, sha256_tree, write_json

MANIFEST = "edgeadapt.json"
SCHEMA_VERSION = 1

_PART = re.compile(r"(.+)-[0-9]{5}-of-([0-9]{5})\.gguf")
"""How llama.cpp names the parts of a split file."""


@dataclass(frozen=True)
class Artifact:
    """A file or folder that a runtime loads."""

    path: Path
    format: str
    """`gguf`, `onnx`, or `hf` for a plain Hugging Face folder (the torch reference)."""
    quantization: str
    """llama.cpp's name for GGUF; `int4`, `int8`, `fp16`, `fp32` for ONNX; stored type for hf."""
    lineage: dict[str, Any] = field(default_factory=dict)

    @property
    def system(self) -> str | None:
        """The one system prompt that what is in it was trained under, if it tells of one.

        A model that was trained whole tells of it in what training left in its folder.
        """
        trained = [self.lineage, self.lineage.get("adapter"), *(self.lineage.get("adapters") or [])]
        told = [((part or {}).get("training") or {}).get("system") for part in trained]
        found = {system for system in told if system}
        if not found and isinstance(before := self.lineage.get("made_from"), dict):
            return replace(self, lineage=before).system
        if not found and self.path.is_dir():
            return trained_system(self.path)
        return found.pop() if len(found) == 1 else None

    @property
    def size_bytes(self) -> int:
        """Bytes on disk of everything that ships."""
        if self.path.is_file():
            return sum(path.stat().st_size for path in self.files)
        return sum(p.stat().st_size for p in self.path.rglob("*") if p.is_file())

    def sha256(self) -> str:
        """Hash of the file, of the hashes of its parts, or of all in the folder."""
        if not self.path.is_file():
            return sha256_tree(self.path)
        hashes = [sha256_file(path) for path in self.files]
        return hashes[0] if len(hashes) == 1 else sha256_json(hashes)

    @property
    def files(self) -> list[Path]:
        """The file itself, or every part of a GGUF file that is split."""
        match = _PART.fullmatch(self.path.name)
        if match is None:
            return [self.path]
        return [
            self.path.with_name(f"{match[1]}-{number:05d}-of-{match[2]}.gguf")
            for number in range(1, int(match[2]) + 1)
        ]

    def write_manifest(self, folder: Path | None = None) -> None:
        """Write `edgeadapt.json` into the artifact's folder (or where it is being built)."""
        folder = folder or self.path
        files = {
            path.relative_to(folder).as_posix(): {
                "bytes": path.stat().st_size,
                "sha256": sha256_file(path),
            }
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != MANIFEST
        }
        record = {"kind": "artifact", "schema_version": SCHEMA_VERSION} | asdict(self)
        record["files"] = files
        del record["path"]
        write_json(folder / MANIFEST, record)


def open_artifact(path: Path) -> Artifact:
    """Recognise what lies at `path`.

    Raises:
        InputError: nothing is there, or nothing that a runtime here can load.
        CorruptFileError: it is damaged.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist; expected a .gguf file or an exported folder")
    if path.is_file():
        from edgeadapt.converters.gguf.metadata import describe

        return describe(path)
    if (path / MANIFEST).is_file():
        record = read_json(path / MANIFEST)
        try:
            if record["schema_version"] != SCHEMA_VERSION:
                raise InputError(
                    f"{path / MANIFEST} has schema version {record['schema_version']}, "
                    f"this edgeadapt reads {SCHEMA_VERSION}; export again"
                )
            if record["kind"] == "artifact":  # else the record of a fully trained model
                return Artifact(path, record["format"], record["quantization"], record["lineage"])
        except (KeyError, TypeError) as error:
            raise CorruptFileError(f"{path / MANIFEST} is not an edgeadapt manifest") from error
    if (path / "genai_config.json").is_file():
        return Artifact(path, "onnx", "unknown")
    if (path / "config.json").is_file():
        config = read_json(path / "config.json")
        return Artifact(path, "hf", str(config.get("dtype") or config.get("torch_dtype")))
    if (path / "adapter_config.json").is_file():
        raise InputError(
            f"{path} is an adapter, which no runtime loads alone; type: "
            f"edgeadapt export --base BASE --adapter {path} ..."
        )
    raise InputError(
        f"{path} is neither a GGUF file nor a folder with {MANIFEST}, genai_config.json or "
        "config.json; give the path that `edgeadapt export` printed"
    )
