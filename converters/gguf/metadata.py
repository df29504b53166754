"""What a GGUF file says about itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gguf.constants import LlamaFileType

from edgeadapt import __version__
from edgeadapt.artifact import Artifact
from edgeadapt.errors import CorruptFileError
from edgeadapt.gguf_io import GgufFile

LINEAGE = "edgeadapt.lineage"
VERSION = "edgeadapt.version"


def lineage_keys(lineage: dict[str, Any]) -> dict[str, str]:
    """Key-values that record where a file came from."""
    return {
        VERSION: __version__,
        LINEAGE: json.dumps(lineage, sort_keys=True, ensure_ascii=False),
    }


def describe(path: Path) -> Artifact:
    """Open a GGUF file far enough to know that it is whole, and what it is.

    Raises:
        CorruptFileError: it is truncated or malformed.
    """
    file = GgufFile(path)
    number = file.metadata.get("general.file_type")
    try:
        name = LlamaFileType(number).name if isinstance(number, int) else "unknown"
    except ValueError:
        name = f"type {number}"
    lineage: Any = {}
    if LINEAGE in file.metadata:
        try:
            lineage = json.loads(file.get(LINEAGE, str))
        except ValueError as error:
            raise CorruptFileError(f"{path}: {LINEAGE} is not JSON") from error
    quantization = name.removeprefix("MOSTLY_").removeprefix("ALL_")
    if not isinstance(lineage, dict):
        lineage = {}
    if "allocation" in lineage:  # a file type has no number for types chosen one by one
        quantization = str(lineage.get("quantization", quantization))
    return Artifact(path, "gguf", quantization, lineage)
