"""Adapters as files beside the base's artifact, and the ONNX graph that takes them at run time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from edgeadapt.adapters import low_rank_updates, parse_adapters
from edgeadapt.adapters.prompts import trained_prefix
from edgeadapt.adapters.vocabulary import TOKENIZER, brings_texts, folder_with_texts
from edgeadapt.artifact import Artifact
from edgeadapt.console import log
from edgeadapt.converters.adapter_files import AdapterRequest, get_adapter_writer
from edgeadapt.converters.onnx.options import OnnxOptions, SeparateAdapter
from edgeadapt.errors import AdapterError, InputError
from edgeadapt.export import (
    ModelToExport,
    adapter_lineage,
    checked_spec,
    export,
    make_unchanged,
    open_model,
)
from edgeadapt.prefix import write_prefix


def export_adapter(
    base: str,
    adapter: Sequence[str | Path],
    format: str,
    quantization: str | None,
    out: Path,
    *,
    revision: str | None = None,
    any_base: bool = False,
) -> Artifact:
    """Write an adapter as a file of its own at `out`, to be loaded beside the base's artifact.

    Args:
        base: what the adapter belongs to, as `open_model` takes it.
        adapter: one PEFT adapter folder.
        format: one that has adapters, `gguf` or `onnx`.
        quantization: how to store it; F32 if not given.
        out: the file to make.
        revision: of a hub id.
        any_base: as `open_model`.

    Raises:
        InputError: something is missing, or `out` exists.
        UnsupportedError: the format cannot express this adapter; the message says why.
    """
    choices = parse_adapters(adapter)
    if len(choices) != 1 or choices[0].weight is not None:
        raise InputError(
            "--adapter-mode separate writes one adapter, without a weight: export each by itself; "
            "llama.cpp loads several, and scales each as it is told"
        )
    write = get_adapter_writer(format)
    path = choices[0].path
    model = open_model(base, revision=revision, beside=[path])
    spec = checked_spec(path, base, model.lineage["base"]["sha256"], any_base)
    if brings_texts(model.folder, path):
        log.warning(
            "the adapter %s was saved with another tokenizer or chat template than the base's, "
            "which no adapter file holds: the artifact beside it must ship them", path.name,
        )  # fmt: skip
    stored = quantization or "F32"
    lineage = model.lineage | {
        "adapter": adapter_lineage(spec),
        "format": format,
        "mode": "separate",
    }
    request = AdapterRequest(
        model.source,
        low_rank_updates(model.source, path),
        stored,
        f"{model.name}-{path.resolve().name}",
        lineage | {"quantization": stored},
    )
    return make_unchanged(model, out, partial(write, request))


def export_prefix(
    base: str,
    adapter: Sequence[str | Path],
    out: Path,
    *,
    revision: str | None = None,
    any_base: bool = False,
) -> Artifact:
    """Write a trained prefix or soft prompt as the KV cache that a model starts from.

    Args:
        base: what it belongs to, as `open_model` takes it.
        adapter: one PEFT adapter folder.
        out: the .safetensors file to make.
        revision: of a hub id.
        any_base: as `open_model`.

    Raises:
        InputError: something is missing, or `out` exists or is called otherwise.
        AdapterError: it belongs to another base.
        UnsupportedError: it is of a kind that leaves no KV cache.
    """
    choices = parse_adapters(adapter)
    if len(choices) != 1 or choices[0].weight is not None:
        raise InputError("a prefix is the KV cache of one adapter, without a weight: give one")
    model = open_model(base, revision=revision, beside=[choices[0].path])
    spec = checked_spec(choices[0].path, base, model.lineage["base"]["sha256"], any_base)
    lineage = model.lineage | {"adapter": adapter_lineage(spec), "mode": "separate"}
    prefix = trained_prefix(spec, model.source, model.lineage["base"]["sha256"])

    def make(place: Path) -> Artifact:
        write_prefix(prefix, place)
        return Artifact(place, "prefix", "F32", lineage | {"tokens": prefix.tokens})

    return make_unchanged(model, out, make)


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
        InputError: as `open_with_adapters`, or `out` exists.
        UnsupportedError: as `open_with_adapters`, or the graph cannot take an adapter.
    """
    model, apart = open_with_adapters(base, adapters, revision=revision, any_base=any_base)
    options = replace(onnx or OnnxOptions(), adapters=apart)
    return export(model, "onnx", quantization, out, threads=threads, onnx=options)


def open_with_adapters(
    base: str, adapters: Sequence[str | Path], *, revision: str | None, any_base: bool
) -> tuple[ModelToExport, tuple[SeparateAdapter, ...]]:
    """The plain base with the texts that its adapters were trained with, and the adapters.

    Raises:
        InputError: something is missing, or two adapters have one name.
        AdapterError: one belongs to another base, or the tokenizers or chat templates that they
            were saved with differ: the folder of a graph holds one.
        UnsupportedError: an adapter is more than a plain LoRA.
    """
    choices = parse_adapters(adapters)
    if any(choice.weight is not None for choice in choices):
        raise InputError("--adapter-mode separate takes adapters without weights")
    names = [choice.path.resolve().name for choice in choices]
    if len(set(names)) < len(names):
        raise InputError(f"the adapters' folders must have different names, found {names}")
    model = open_model(base, revision=revision, beside=[choice.path for choice in choices])
    digest = model.lineage["base"]["sha256"]
    specs = [checked_spec(choice.path, base, digest, any_base) for choice in choices]
    lineage = {"mode": "separate", "adapters": [adapter_lineage(spec) for spec in specs]}
    apart = tuple(
        SeparateAdapter(name, tuple(low_rank_updates(model.source, choice.path)))
        for name, choice in zip(names, choices, strict=True)
    )
    folder = _folder_with_texts(model.folder, [choice.path for choice in choices])
    return replace(model, folder=folder, lineage=model.lineage | lineage), apart


def _folder_with_texts(base: Path, adapters: Sequence[Path]) -> Path:
    """As `folder_with_texts`, but one with the base's own texts counts as well."""
    own = next((path for path in adapters if brings_texts(base, path)), None)
    if own is None:
        return base
    for other in adapters:
        if brings_texts(own, other):
            raise AdapterError(
                f"the adapters {own.name} and {other.name} come with different tokenizers or chat "
                "templates, and the folder of a graph holds one; export a folder for each"
            )
        if not (other / TOKENIZER).is_file():
            log.warning(
                "the adapter %s was saved without a tokenizer; it gets that of %s",
                other.name, own.name,
            )  # fmt: skip
    return folder_with_texts(base, [own])
