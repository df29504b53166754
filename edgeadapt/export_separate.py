"""A base's ONNX graph that takes adapters at run time, and adapters as files beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from edgeadapt.adapters import low_rank_updates, parse_adapters
from edgeadapt.artifact import Artifact
from edgeadapt.converters.onnx.options import OnnxOptions, SeparateAdapter
from edgeadapt.errors import InputError
from edgeadapt.export import adapter_lineage, checked_spec, export, open_model


def export_with_adapters(
    base: str,
    adapters: Sequence[str | Path],
    quantization: str,
    out: Path,
    *,
    revision: str | None = None,
    any_base: bool = False,
    threads: int | None = None,
    onnx: OnnxOptions | None = None,
) -> Artifact:
    """Write the base's ONNX folder with inputs for adapters, and each adapter into it as a file.

    The graph takes adapters of any rank on the tensors that at least one of these adapters changes;
    others are made for it with `export_adapter`.

    Args:
        base: what the adapters belong to, as `open_model` takes it.
        adapters: PEFT adapter folders, each of another name.
        quantization: of the base; adapters are float32.
        out: the folder to make.
        revision: of a hub id.
        any_base: as `open_model`.
        threads: default all cores.
        onnx: further options of the export.

    Raises:
        InputError: something is missing, or `out` exists.
        UnsupportedError: an adapter is more than a plain LoRA, or the graph cannot take it.
    """
    choices = parse_adapters(adapters)
    if any(choice.weight is not None for choice in choices):
        raise InputError("--adapter-mode separate takes adapters without weights")
    names = [choice.path.resolve().name for choice in choices]
    if len(set(names)) < len(names):
        raise InputError(f"the adapters' folders must have different names, found {names}")
    model = open_model(base, revision=revision)
    digest = model.lineage["base"]["sha256"]
    specs = [checked_spec(choice.path, base, digest, any_base) for choice in choices]
    lineage = {"mode": "separate", "adapters": [adapter_lineage(spec) for spec in specs]}
    options = replace(
        onnx or OnnxOptions(),
        adapters=tuple(
            SeparateAdapter(name, tuple(low_rank_updates(model.source, choice.path)))
            for name, choice in zip(names, choices, strict=True)
        ),
    )
    model = replace(model, lineage=model.lineage | lineage)
    return export(model, "onnx", quantization, out, threads=threads, onnx=options)
