"""Which tokenizer ships with a merged model: the base's, or one that was saved with an adapter."""

from __future__ import annotations

import filecmp
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeadapt.console import log
from edgeadapt.errors import AdapterError, InputError
from edgeadapt.files import atomic_folder, cache_dir, read_json, sha256_file, sha256_json
from edgeadapt.tokenizer import TOKENIZER_FILES, read_chat_template

TOKENIZER = "tokenizer.json"
_FROM_BASE = ("config.json", "generation_config.json", "tokenizer.model")


def folder_with_texts(base: Path, adapters: Sequence[Path]) -> Path:
    """The folder to take tokenizer, chat template and generation config from.

    That is the base's, unless an adapter was saved with a tokenizer of another vocabulary or with
    another chat template: that is what it was trained with. Then a folder in the cache has the
    adapter's files, and the base's where the adapter has none.

    Raises:
        AdapterError: two adapters come with different ones.
    """
    changed = [path for path in adapters if brings_texts(base, path)]
    if not changed:
        return base
    first = changed[0]
    for other in changed[1:]:
        if brings_texts(first, other):
            raise AdapterError(
                f"the adapters {first.name} and {other.name} come with different tokenizers or "
                "chat templates; merge adapters that were trained with the same"
            )
    log.info("taking the tokenizer that was saved with the adapter %s", first.name)
    return _combined(base, first)


def brings_texts(base: Path | None, adapter: Path) -> bool:
    """Whether the adapter's folder has a tokenizer, and it is not the base's, as far as known."""
    if not (adapter / TOKENIZER).is_file():
        return False
    if base is None or not (base / TOKENIZER).is_file():
        return True
    template = _template(adapter)
    if template is not None and template != _template(base):
        return True
    return not same_vocabulary(base, adapter)


def same_vocabulary(one: Path, other: Path) -> bool:
    """Whether the tokenizers in two folders give every token the same number.

    Raises:
        InputError: one of them cannot be read.
    """
    same_bytes = filecmp.cmp(one / TOKENIZER, other / TOKENIZER, shallow=False)
    return same_bytes or _vocabulary(one) == _vocabulary(other)


def _vocabulary(folder: Path) -> Any:
    path = folder / TOKENIZER
    record = read_json(path)
    try:
        added = {entry["id"]: entry["content"] for entry in record.get("added_tokens") or []}
        return record["model"]["vocab"], added
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a tokenizer; save the tokenizer again") from error


def _template(folder: Path) -> str | None:
    path = folder / "tokenizer_config.json"
    config = read_json(path) if path.is_file() else {}
    return read_chat_template(folder, config if isinstance(config, dict) else {})


def _combined(base: Path, adapter: Path) -> Path:
    """The adapter's tokenizer with what only the base has, made once for each content."""
    files = {name: base / name for name in _FROM_BASE}
    files |= {name: adapter / name for name in TOKENIZER_FILES if (adapter / name).is_file()}
    files = {name: path for name, path in files.items() if path.is_file()}
    template = _template(adapter) or _template(base)
    hashes = {name: sha256_file(path) for name, path in files.items()}
    folder = cache_dir() / "tokenizers" / sha256_json([hashes, template])[:16]
    if not folder.is_dir():
        with atomic_folder(folder, overwrite=True) as partial:
            for name, path in files.items():
                shutil.copyfile(path, partial / name)
            if template is not None:
                (partial / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder
