"""Describe a PEFT adapter folder, and what can carry it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgeadapt.adapters import low_rank_updates, merged_source
from edgeadapt.adapters.bottleneck import PEFT_TYPE as BOTTLENECK
from edgeadapt.adapters.contents import WHOLE, AdapterContents
from edgeadapt.adapters.merged import check_changes_weights
from edgeadapt.adapters.prompts import CACHEABLE, prompt_rows
from edgeadapt.adapters.separate import not_plain_lora
from edgeadapt.adapters.sequential import FORMS
from edgeadapt.adapters.spec import WEIGHTS, AdapterSpec, describe_spec, read_spec
from edgeadapt.adapters.via_peft import MERGEABLE
from edgeadapt.adapters.vocabulary import brings_texts
from edgeadapt.base_model import DEFAULT, default_gguf
from edgeadapt.errors import EdgeAdaptError, InputError, MissingExtraError, UnsupportedError
from edgeadapt.inspect.report import folder_bytes
from edgeadapt.inspect.targets import Target, merged_targets
from edgeadapt.prefix import RUNTIMES
from edgeadapt.safetensors_io import SafetensorsFile, SafetensorsSource
from edgeadapt.weights import LowRankUpdate, WeightSource, is_tied, parameter_count

_RECORD = ("method", "quantization", "steps", "examples", "learning_rate", "held_out", "base_hash",
           "data_hash", "settings", "versions")  # fmt: skip


def describe_adapter(path: Path, base: str | None = None) -> dict[str, Any]:
    """Method, ranks, scaling, targets, what it was trained on, and what can carry it.

    Args:
        path: the adapter folder.
        base: folder or GGUF file of the base; by default what the adapter names, if it is here.

    Raises:
        InputError: adapter or base are unusable.
        CorruptFileError: files are damaged.
    """
    spec = describe_spec(path)
    file = SafetensorsFile(path / WEIGHTS)
    trained = sum(info.size for info in file.tensors().values())
    found = find_base(spec, base)
    parameters = parameter_count(found[0]) if found else None
    return {
        "kind": "adapter",
        "path": str(path),
        "method": spec.method,
        "r": spec.r or None,
        "alpha": spec.alpha or None,
        "rank_pattern": dict(spec.rank_pattern),
        "alpha_pattern": dict(spec.alpha_pattern),
        **_modules(spec),
        "parameters": trained,
        "dtypes": sorted({info.dtype for info in file.tensors().values()}),
        "bytes": folder_bytes(path),
        "base": {
            "name": spec.base_model,
            "revision": spec.config.get("revision"),
            "found": found is not None,
            "parameters": parameters,
            "share": trained / parameters if parameters else None,
        },
        "record": {key: spec.record[key] for key in _RECORD if key in spec.record},
        "targets": [target.record() for target in adapter_targets(path, found)],
    }


def find_base(spec: AdapterSpec, given: str | None) -> tuple[WeightSource, Path | None] | None:
    """The base's tensors and tokenizer folder; None where it is not on this machine.

    Raises:
        InputError: `given` is no base.
    """
    name = given or spec.base_model
    if name == DEFAULT and not Path(name).exists():
        try:
            name = str(default_gguf())
        except MissingExtraError:
            return None
    path = Path(name).expanduser() if name else None
    if path is None or not path.exists():
        if given is not None:
            raise InputError(f"{given} does not exist; give a model folder or a GGUF file")
        return None
    if path.is_dir():
        if given is None and not (path / "config.json").is_file():
            return None
        return SafetensorsSource(path), path
    from edgeadapt.gguf_split import open_gguf
    from edgeadapt.importers.gguf_file import source_in

    return source_in(open_gguf(path)), None


def _modules(spec: AdapterSpec) -> dict[str, Any]:
    """What each group of modules has, by the last part of their names, rank and scaling."""
    if spec.peft_type not in {"LORA", "IA3"}:
        places = spec.config.get("target_modules", spec.config.get("placement"))
        return {"groups": [], "places": places, "whole": [], "token_rows": {}}
    groups: dict[tuple[Any, ...], int] = defaultdict(int)
    whole = []
    for module, parts in AdapterContents(spec).modules.items():
        leaf = module.rpartition(".")[2]
        if WHOLE & parts.keys():
            whole.append(module)
        if spec.peft_type == "LORA" and any(part.startswith("lora_") for part in parts):
            rank = spec.rank_of(module)
            groups[leaf, rank, spec.alpha_of(module), spec.scaling_of(module, rank)] += 1
        elif "ia3_l" in parts:
            groups[leaf, None, None, None] += 1
    return {
        "groups": [
            {"modules": leaf, "count": count, "r": rank, "alpha": alpha, "scaling": scaling}
            for (leaf, rank, alpha, scaling), count in groups.items()
        ],
        "places": sorted({leaf for leaf, *_ in groups}),
        "whole": sorted(whole),
        "token_rows": {name: len(rows) for name, rows in spec.trainable_token_indices.items()},
    }


def adapter_targets(path: Path, found: tuple[WeightSource, Path | None] | None) -> list[Target]:
    """Which formats can carry the adapter, merged and separate; never raises for a refusal."""
    refusal = _refusal(lambda: _check_mergeable(path))
    if refusal is not None:
        return [
            target
            for name in ("gguf", "onnx")
            for target in (
                Target(name, "merged", False, refusal),
                _unmergeable(name, path, refusal),
            )
        ]
    from edgeadapt.converters.gguf.lora import check_lora
    from edgeadapt.converters.onnx.stream.adapters import check_adapter

    gguf, onnx = _merged(path, found)
    return [
        gguf,
        _separate("gguf", check_lora, path, found),
        onnx,
        _separate("onnx", check_adapter, path, found),
    ]


def _unmergeable(format: str, path: Path, refusal: str) -> Target:
    """An adapter that cannot be merged, kept apart: only as a KV cache."""
    spec = describe_spec(path)
    if spec.peft_type in CACHEABLE:
        why = _refusal(lambda: prompt_rows(spec))
        if why is None:
            note = f"as the KV cache that {' and '.join(RUNTIMES)} start from"
            return Target(format, "separate", True, notes=(note,))
        refusal = why
    return Target(format, "separate", False, refusal)


def _merged(path: Path, found: tuple[WeightSource, Path | None] | None) -> list[Target]:
    if found is None:
        return [Target(name, "merged", None) for name in ("gguf", "onnx")]
    base, folder = found
    try:
        source = merged_source(base, path)
    except EdgeAdaptError as error:
        return [Target(name, "merged", False, str(error)) for name in ("gguf", "onnx")]
    notes = []
    if is_tied(base) and not is_tied(source):
        notes.append("the head, tied to the embedding in the base, becomes a matrix of its own")
    if source.config.get("vocab_size") != base.config.get("vocab_size"):
        notes.append(f"the vocabulary becomes {source.config.get('vocab_size')} tokens")
    targets = merged_targets(source, None if brings_texts(folder, path) else folder)
    return [
        Target(item.format, item.mode, item.possible, item.reason, (*item.notes, *notes))
        for item in targets
    ]


def _separate(
    format: str,
    check: Callable[[WeightSource, Sequence[LowRankUpdate]], None],
    path: Path,
    found: tuple[WeightSource, Path | None] | None,
) -> Target:
    if reasons := not_plain_lora(read_spec(path), found[0] if found else None):
        return Target(format, "separate", False, "; ".join(reasons))
    if found is None:
        return Target(format, "separate", None)
    base, folder = found
    refusal = _refusal(lambda: check(base, low_rank_updates(base, path)))
    if refusal is not None:
        return Target(format, "separate", False, refusal)
    notes = (
        ("its own tokenizer and chat template stay behind: the file has no place for them",)
        if brings_texts(folder, path)
        else ()
    )
    return Target(format, "separate", True, notes=notes)


def _check_mergeable(path: Path) -> None:
    spec = read_spec(path)
    check_changes_weights(spec)
    if spec.peft_type not in {"LORA", "IA3", BOTTLENECK, *FORMS, *MERGEABLE}:
        raise UnsupportedError(f"edgeadapt cannot merge {spec.method!r} adapters")


def _refusal(check: Callable[[], object]) -> str | None:
    try:
        check()
    except EdgeAdaptError as error:
        return str(error)
    return None
