"""The plain base in an artifact's quantization: what the bits cost without any adapter.

It is run over the beginning of the held-out text alone: it tells two losses apart and is no figure
of the artifact's own, and it would take as long as the artifact itself.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from edgeadapt import __version__
from edgeadapt.artifact import Artifact
from edgeadapt.console import log
from edgeadapt.converters.gguf.options import GgufOptions
from edgeadapt.converters.onnx.options import OnnxOptions
from edgeadapt.data.encode import Encoded
from edgeadapt.errors import ChangedError, DiskFullError, InputError
from edgeadapt.export import ModelToExport, export, open_model
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
from edgeadapt.leftovers import scratch
from edgeadapt.runtimes.registry import preferred_runtime

FLOAT = frozenset({"F32", "F16", "BF16", "fp32", "fp16", "float32", "float16", "bfloat16"})
"""Quantizations that take next to nothing from a weight."""

MOST_TOKENS = 2048
"""Of the text that the plain base is run over, those included that are not scored."""


def stored_as(artifact: Artifact) -> str:
    """The named quantization that an artifact was written in; `mixed-80MiB` is the name of none."""
    if artifact.format != "gguf" or "allocation" not in artifact.lineage:
        return artifact.quantization
    from gguf.constants import LlamaFileType

    from edgeadapt.gguf_io import GgufFile

    number = GgufFile(artifact.path).get("general.file_type", int)
    return str(LlamaFileType(number).name).removeprefix("MOSTLY_").removeprefix("ALL_")


def quantized_base(
    folder: Path,
    artifact: Artifact,
    encoded: Sequence[Encoded],
    reference: Reference,
    base: Reference | None,
    *,
    engine: Engine,
    others: Sequence[str] = (),
) -> TokenDivergence | None:
    """Export the base as the artifact was, compare it, and remember the figures in the cache.

    An artifact that has its adapter beside it is the quantized base already.

    An importance matrix is left out: it was measured on the merged model.

    Args:
        folder: the base's Hugging Face folder.
        artifact: whose format, quantization and tensor types to take.
        encoded: the text that the references are of; sequences from its beginning are taken.
        reference: the artifact's.
        base: the float base's, where the artifact's is another.
        engine: what the artifact runs on.
        others: runtimes that will be asked for later: the base is exported once for all.

    Returns:
        Of the scored tokens of the first sequences, at most `MOST_TOKENS` long. None if there is
        nothing to tell: the artifact holds float weights, or its quantization cannot be made
        without an importance matrix.
    """
    if stored_as(artifact) in FLOAT or artifact.format == "hf":
        return None
    encoded = _beginning(encoded)
    if engine.adapter is not None:  # then the artifact is the quantized base itself
        alone = replace(engine, adapter=None)
        title = f"{artifact.quantization} without the adapter"
        return compare(artifact.path, encoded, reference, base, engine=alone, title=title)
    options = _options(artifact)
    runtime = engine.runtime or preferred_runtime(artifact.format)
    stored = {
        name: _place(artifact, options, reference, base, name) / f"{len(encoded)}.npz"
        for name in dict.fromkeys([runtime, *others])
    }
    if not stored[runtime].is_file():
        with scratch("base") as place:
            plain = _export(_as_referenced(folder, reference), artifact, options, place)
            if plain is None:
                return None
            for name, path in stored.items():
                found = compare(
                    plain.path, encoded, reference, base, engine=replace(engine, runtime=name),
                    title=f"{artifact.quantization} of the plain base on {name}",
                )  # fmt: skip
                with atomic_file(path, overwrite=True) as partial, partial.open("wb") as file:
                    write_divergence(file, found)
    return read_divergence(stored[runtime])


def _beginning(encoded: Sequence[Encoded]) -> Sequence[Encoded]:
    """Whole sequences of at most `MOST_TOKENS` in all; the first one always."""
    ends = itertools.accumulate(len(example.ids) for example in encoded)
    return encoded[: max(1, sum(end <= MOST_TOKENS for end in ends))]


def _place(
    artifact: Artifact,
    options: GgufOptions,
    reference: Reference,
    base: Reference | None,
    runtime: str,
) -> Path:
    """The folder for one runtime's figures; the references' names are hashes of model and text."""
    key = {
        "base": base and base.folder.name,
        "reference": reference.folder.name,
        "format": artifact.format,
        "quantization": artifact.quantization,
        "onnx": [artifact.lineage.get("exporter"), artifact.lineage.get("settings")],
        "tensor_types": [[pattern, kind.name] for pattern, kind in options.tensor_types],
        "engine": engine_identity(runtime),
        "edgeadapt": __version__,
    }
    return cache_dir() / "quantized-bases" / sha256_json(key)[:24]


def _as_referenced(folder: Path, reference: Reference) -> ModelToExport:
    """The base, which must be the one that the reference is of.

    Raises:
        ChangedError: it is not any more.
    """
    model = open_model(str(folder))
    if model.lineage["base"]["sha256"] != reference.base_hash:
        raise ChangedError(
            f"{folder} was changed since its reference was computed; type the same command again"
        )
    return model


def _export(
    model: ModelToExport, artifact: Artifact, options: GgufOptions, scratch: Path
) -> Artifact | None:
    out = scratch / ("base.gguf" if artifact.format == "gguf" else "base")
    try:
        return export(
            model, artifact.format, stored_as(artifact), out,
            options=options, onnx=_onnx_options(artifact),
        )  # fmt: skip
    except (DiskFullError, ChangedError):
        raise
    except InputError as error:  # such as a type that needs an importance matrix
        log.warning(
            "%s of the plain base cannot be made, so what the bits cost is not told: %s",
            artifact.quantization, error,
        )  # fmt: skip
        return None


def _onnx_options(artifact: Artifact) -> OnnxOptions | None:
    """How an ONNX graph was quantized, as its lineage records it."""
    if artifact.format != "onnx":
        return None
    said = artifact.lineage.get("settings") or {}
    algorithm = said.get("algorithm")
    return OnnxOptions(
        exporter=artifact.lineage.get("exporter"),
        algorithm=f"{algorithm}_mixed" if algorithm and said.get("mixed") else algorithm,
        block_size=said.get("block_size"),
        symmetric=said.get("symmetric"),
        accuracy_level=said.get("accuracy_level"),
        preset=said.get("preset"),
    )


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
