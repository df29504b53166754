"""The plain base in an artifact's quantization: what the bits cost without any adapter."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgeadapt import __version__
from edgeadapt.artifact import Artifact
from edgeadapt.console import log
from edgeadapt.converters.gguf.options import GgufOptions
from edgeadapt.data.encode import Encoded
from edgeadapt.errors import InputError
from edgeadapt.export import export, open_model
from edgeadapt.fidelity.compare import (
    Engine,
    compare,
    engine_identity,
    read_divergence,
    write_divergence,
)
from edgeadapt.fidelity.metrics import TokenDivergence
from edgeadapt.fidelity.references import Reference
from edgeadapt.files import atomic_file, cache_dir, sha256_json
from edgeadapt.runtimes.registry import preferred_runtime

FLOAT = frozenset({"F32", "F16", "BF16", "fp32", "fp16", "float32", "float16", "bfloat16"})
"""Quantizations that take next to nothing from a weight."""


def quantized_base(
    folder: Path,
    artifact: Artifact,
    encoded: Sequence[Encoded],
    merged: Reference,
    base: Reference,
    *,
    engine: Engine,
) -> TokenDivergence | None:
    """Export the base as the artifact was, compare it, and remember the figures in the cache.

    An importance matrix is left out: it was measured on the merged model.

    Args:
        folder: the base's Hugging Face folder.
        artifact: whose format, quantization and tensor types to take.
        encoded: the text that the references are of.
        merged: the artifact's reference.
        base: the float base's.
        engine: what the artifact runs on.

    Returns:
        None if there is nothing to tell: the artifact holds float weights, or its quantization
        cannot be made without an importance matrix.
    """
    if artifact.quantization in FLOAT or artifact.format == "hf":
        return None
    options = _options(artifact)
    runtime = engine.runtime or preferred_runtime(artifact.format)
    key = {
        "base": base.folder.name,
        "merged": merged.folder.name,
        "format": artifact.format,
        "quantization": artifact.quantization,
        "tensor_types": [[pattern, kind.name] for pattern, kind in options.tensor_types],
        "engine": engine_identity(runtime),
        "edgeadapt": __version__,
    }
    stored = cache_dir() / "quantized-bases" / f"{sha256_json(key)[:24]}.npz"
    if not stored.is_file():
        with tempfile.TemporaryDirectory(prefix="edgeadapt-base-") as scratch:
            name = "base.gguf" if artifact.format == "gguf" else "base"
            try:
                plain = export(
                    open_model(str(folder)), artifact.format, artifact.quantization,
                    Path(scratch) / name, options=options,
                )  # fmt: skip
            except InputError as error:  # such as a type that needs an importance matrix
                log.warning(
                    "%s of the plain base cannot be made, so what the bits cost is not told: %s",
                    artifact.quantization, error,
                )  # fmt: skip
                return None
            found = compare(
                plain.path, encoded, merged, base, engine=engine,
                title=f"{artifact.quantization} of the plain base on {runtime}",
            )  # fmt: skip
        with atomic_file(stored, overwrite=True) as partial, partial.open("wb") as file:
            write_divergence(file, found)
    return read_divergence(stored)


def _options(artifact: Artifact) -> GgufOptions:
    """The types of a GGUF file's tensors, where its mix is not the stock one."""
    if not {"imatrix", "tensor_types"} & artifact.lineage.keys() or artifact.format != "gguf":
        return GgufOptions()
    from edgeadapt.converters.gguf.mixes import is_matrix
    from edgeadapt.gguf_io import GgufFile

    return GgufOptions(
        tensor_types=tuple(
            (f"^{re.escape(name)}$", tensor.type)
            for path in artifact.files
            for name, tensor in GgufFile(path).tensors.items()
            if is_matrix(name, tensor.shape)
        )
    )
