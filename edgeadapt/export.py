"""One pass from a base and an adapter to an artifact."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from edgeadapt import __version__
from edgeadapt.adapters import (
    AdapterGiven,
    AdapterSpec,
    parse_adapters,
    read_spec,
    stacked_source,
)
from edgeadapt.adapters.held import HeldSource, held_base
from edgeadapt.adapters.spec import CONFIG, WEIGHTS, system_in
from edgeadapt.adapters.vocabulary import folder_with_texts
from edgeadapt.artifact import MANIFEST, Artifact
from edgeadapt.base_model import DEFAULT, base_hash, file_sha256, resolve_base
from edgeadapt.console import log
from edgeadapt.converters.base import ConversionRequest, ExportPlan
from edgeadapt.converters.gguf.options import GgufOptions
from edgeadapt.converters.onnx.options import OnnxOptions
from edgeadapt.converters.registry import get_converter
from edgeadapt.cpu import usable_cpus
from edgeadapt.errors import AdapterError, InputError
from edgeadapt.files import publish, read_json, staged
from edgeadapt.safetensors_io import SafetensorsSource, shard_map
from edgeadapt.tokenizer import TOKENIZER_FILES
from edgeadapt.watched import Watched
from edgeadapt.weights import WeightSource, is_tied

MergeBase = Literal["original", "quantized"]


@dataclass(frozen=True)
class ModelToExport:
    """A base, perhaps with an adapter merged in, ready to be read tensor by tensor."""

    folder: Path
    """The base's folder: tokenizer, chat template, generation config."""
    source: WeightSource
    name: str
    lineage: dict[str, Any]
    inputs: Watched
    """The files that it is read from."""


def open_model(
    base: str,
    adapter: Path | Sequence[AdapterGiven] | None = None,
    *,
    revision: str | None = None,
    any_base: bool = False,
    merge_onto: MergeBase = "original",
    trained_on: str | None = None,
    beside: Sequence[Path] = (),
) -> ModelToExport:
    """Resolve a base and merge adapters into it lazily.

    Args:
        base: folder, GGUF file, hub id or `default`.
        adapter: a PEFT adapter folder, or several as `parse_adapters` takes them.
        revision: of a hub id.
        any_base: accept an adapter whose record says that it was trained on another base.
        merge_onto: `original` weights, or `quantized`: as training held them in 4 bits.
        trained_on: how training held the base, where the adapter's record does not say.
        beside: adapter folders that are read as well, but not merged.

    Raises:
        InputError: base or adapter are missing or unusable, or nothing says how the base to merge
            onto was quantized.
        AdapterError: the adapter belongs to another base.
    """
    folder = resolve_base(base, revision=revision)
    choices = parse_adapters([adapter] if isinstance(adapter, Path) else adapter or ())
    inputs = _inputs(folder, [*(choice.path for choice in choices), *beside])
    source: WeightSource = SafetensorsSource(folder)
    digest = base_hash(folder)
    name = base if base == DEFAULT else Path(base).stem if base.endswith(".gguf") else base
    lineage: dict[str, Any] = {
        "edgeadapt": __version__,
        "base": {"name": Path(name).name, "sha256": digest, "revision": revision},
        "adapter": None,
    } | _history(folder)
    if choices:
        specs = [checked_spec(choice.path, base, digest, any_base) for choice in choices]
        tied = is_tied(source)
        lineage["merge"] = {"onto": merge_onto, "precision": "float32"}
        if merge_onto == "quantized":
            source = _as_trained(source, specs, trained_on)
            lineage["merge"]["held"] = source.held.record()
        source = stacked_source(source, choices)
        described = [adapter_lineage(spec) for spec in specs]
        lineage["adapter"] = described[0]
        if tied and not is_tied(source):
            lineage["merge"]["untied_head"] = True
        if len(choices) > 1 or choices[0].weight is not None:
            weights = [choice.weight for choice in choices]
            lineage["adapter"] = None
            lineage["adapters"] = [
                item | {"weight": weight} for item, weight in zip(described, weights, strict=True)
            ]
        name = "-".join([Path(name).name, *(choice.path.resolve().name for choice in choices)])
        folder = folder_with_texts(folder, [choice.path for choice in choices])
    return ModelToExport(folder, source, Path(name).name, lineage, inputs)


def _inputs(folder: Path, adapters: Sequence[Path]) -> Watched:
    """What is read of a base and adapters; other files may come and go in their folders."""
    files = [folder / name for name in ("config.json", *set(shard_map(folder).values()))]
    files += [path / name for path in adapters for name in (CONFIG, WEIGHTS)]
    return Watched(
        files + [path / name for path in (folder, *adapters) for name in TOKENIZER_FILES]
    )


def _as_trained(source: WeightSource, specs: list[AdapterSpec], stated: str | None) -> HeldSource:
    held = held_base(specs, stated)
    if held is None:
        raise InputError(
            f"the adapter {specs[0].path} was trained on a base in floating point, so there is no "
            "quantized base to merge onto; give --merge-onto original"
        )
    return HeldSource(source, held)


def export(
    model: ModelToExport,
    format: str,
    quantization: str,
    out: Path,
    *,
    threads: int | None = None,
    options: GgufOptions | None = None,
    check: Callable[[Artifact], None] | None = None,
    onnx: OnnxOptions | None = None,
) -> Artifact:
    """Convert a model to `format` at `out`, whole or not at all.

    Args:
        model: what to convert.
        format: name of a converter.
        quantization: one that the format has.
        out: the file or folder to make.
        threads: default all cores.
        options: of the GGUF converter.
        onnx: options of the ONNX converter.
        check: is shown the artifact before it gets its name; if it raises, nothing is left.

    Raises:
        InputError: `out` exists, format or quantization are unknown, the disk lacks room, or the
            model was changed meanwhile.
        UnsupportedError: the architecture has no place in this format.
    """
    request = _request(model, format, quantization, threads, options, onnx)
    return make_unchanged(model, out, partial(get_converter(format).convert, request), check)


def make_unchanged(
    model: ModelToExport,
    out: Path,
    make: Callable[[Path], Artifact],
    check: Callable[[Artifact], None] | None = None,
) -> Artifact:
    """Make a file or folder, unless what it is made of is changed meanwhile.

    Args:
        model: what it is made of.
        out: the file or folder.
        make: makes it at another place.
        check: is shown it before it gets its name.

    Raises:
        InputError: as `make`; `out` exists, or the model was changed.
    """
    if out.exists():
        return make(out)  # which says what is wrong
    with staged(out) as place:
        try:
            made = make(place)
        except InputError as error:
            error.args = (str(error).replace(str(place), str(out)),)
            raise
        model.inputs.check()
        if check is not None:
            check(made)
        return replace(made, path=publish(made.files, out.parent)[0])


def plan_export(
    model: ModelToExport,
    format: str,
    quantization: str,
    out: Path,
    *,
    threads: int | None = None,
    options: GgufOptions | None = None,
    onnx: OnnxOptions | None = None,
) -> ExportPlan:
    """What `export` with the same arguments would take; nothing is written.

    Raises:
        InputError: as `export`, except that `out` may exist and the disk may be full.
        UnsupportedError: as `export`.
    """
    request = _request(model, format, quantization, threads, options, onnx)
    return get_converter(format).plan(request, out)


def _request(
    model: ModelToExport,
    format: str,
    quantization: str,
    threads: int | None,
    options: GgufOptions | None,
    onnx: OnnxOptions | None,
) -> ConversionRequest:
    options, onnx = options or GgufOptions(), onnx or OnnxOptions()
    if format != "gguf" and options != GgufOptions():
        raise InputError(
            "an importance matrix, --tensor-type, --max-size and --split-max-size are for --format "
            f"gguf; {format} has none of these"
        )
    if format != "onnx" and onnx != OnnxOptions():
        raise InputError(
            "--exporter, --algorithm, --block-size, --symmetric, --accuracy-level and "
            f"--instruction-set are for --format onnx; {format} has none of these"
        )
    lineage = model.lineage | {"format": format, "quantization": quantization}
    if options.allocation is not None:
        lineage |= {"quantization": options.label, "allocation": dict(options.allocation)}
    if options.importance is not None:
        imatrix = options.importance
        lineage["imatrix"] = {
            "name": imatrix.name, "sha256": imatrix.sha256, "datasets": list(imatrix.datasets),
        }  # fmt: skip
    if options.tensor_types:
        lineage["tensor_types"] = {pattern: kind.name for pattern, kind in options.tensor_types}
    return ConversionRequest(
        source=model.source,
        model_folder=model.folder,
        quantization=quantization,
        name=model.name,
        lineage=lineage,
        threads=threads or usable_cpus(),
        gguf=options,
        onnx=onnx,
    )


def checked_spec(path: Path, base: str, digest: str, any_base: bool) -> AdapterSpec:
    """Read an adapter's configuration and see that it was trained on this base.

    Args:
        path: the adapter's folder.
        base: what the base is called, for messages.
        digest: the base's hash.
        any_base: only warn if it was trained on another.

    Raises:
        AdapterError: it was.
        InputError: the folder holds no adapter.
    """
    if (path / "config.json").is_file() and not (path / CONFIG).is_file():
        raise InputError(f"{path} is a whole model, not an adapter; give it with --base")
    spec = read_spec(path)
    _check_trained_on(spec, base, digest, any_base)
    return spec


def _check_trained_on(spec: AdapterSpec, base: str, digest: str, any_base: bool) -> None:
    trained_on = spec.record.get("base_hash")
    if trained_on in (None, digest):
        return
    message = (
        f"the adapter {spec.path} was trained on {spec.base_model or 'another base'} "
        f"(sha256 {str(trained_on)[:12]}...), but {base} has sha256 {digest[:12]}..."
    )
    if not any_base:
        raise AdapterError(f"{message}: give the base it was trained on, or --any-base to merge")
    log.warning("%s; merging all the same, as asked", message)


def _history(folder: Path) -> dict[str, Any]:
    """How a base that edgeadapt trained or merged came about, from the record in its folder."""
    path = folder / MANIFEST
    record = read_json(path) if path.is_file() else None
    if not isinstance(record, dict):
        return {}
    if record.get("kind") == "artifact":
        return {"made_from": record.get("lineage")}
    base = {"name": _without_folder(record.get("base")), "sha256": record.get("base_hash")}
    return {"training": {"base": base} | _training(record)}


def _training(record: Mapping[str, Any]) -> dict[str, Any]:
    told = ("method", "data_hash", "quantization", "steps")
    system = system_in(record)
    return {key: record[key] for key in told if key in record} | (
        {"system": system} if system is not None else {}
    )


def adapter_lineage(spec: AdapterSpec) -> dict[str, Any]:
    """What an artifact says of an adapter that went into it, or lies beside it."""
    return {
        "name": spec.path.resolve().name,
        "sha256": file_sha256(spec.path / WEIGHTS),
        "config_sha256": file_sha256(spec.path / CONFIG),
        "method": spec.method,
        "r": spec.r or None,
        "alpha": spec.alpha or None,
        "trained_on": _without_folder(spec.base_model),
        "training": _training(spec.record),
    }


def _without_folder(base: str | None) -> str | None:
    """A hub id as it is; of a path its end, since an artifact tells nobody's folders."""
    if base is not None and Path(base).expanduser().is_absolute():
        return Path(base).name
    return base
