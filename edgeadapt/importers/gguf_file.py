"""Import a GGUF file: dequantized safetensors, config.json, tokenizer and chat template."""

from __future__ import annotations

from pathlib import Path

from edgeadapt.console import progress
from edgeadapt.errors import UnsupportedError
from edgeadapt.files import atomic_folder, write_json
from edgeadapt.gguf_io import GgufFile
from edgeadapt.gguf_split import open_gguf
from edgeadapt.importers.gguf_llama import GgufLlama
from edgeadapt.importers.gguf_tokenizer import write_tokenizer
from edgeadapt.safetensors_io import SINGLE, write_safetensors
from edgeadapt.weights import Float32Array

IMPORTER_VERSION = 1
"""Raise when the same file would be imported differently: cached imports are keyed by it."""

_ARCHITECTURES = {"llama": GgufLlama}


def source_in(file: GgufFile) -> GgufLlama:
    """A GGUF file's weights by their Hugging Face names, dequantized as they are read.

    Raises:
        CorruptFileError: the file is malformed.
        UnsupportedError: its architecture or a tensor type is not handled.
    """
    architecture = file.get("general.architecture", str)
    if architecture not in _ARCHITECTURES:
        raise UnsupportedError(
            f"{file.path} is of the architecture {architecture!r:.40}; GGUF import supports "
            f"{', '.join(_ARCHITECTURES)}: use the model's Hugging Face folder instead"
        )
    return _ARCHITECTURES[architecture](file)


def import_gguf(path: Path, out: Path) -> None:
    """Write a Hugging Face folder with float32 weights from a GGUF file.

    Tensors are streamed in row chunks. The folder appears complete or not at all.

    Raises:
        InputError: the file cannot be read, or `out` exists.
        CorruptFileError: the file is truncated or malformed.
        UnsupportedError: its architecture, tokenizer or a tensor type is not handled.
    """
    file = open_gguf(path)
    source = source_in(file)
    tensors = source.tensors()
    with atomic_folder(out) as folder:
        write_json(folder / "config.json", source.config)
        write_tokenizer(file, folder, source.config["vocab_size"])
        with progress(f"importing {path.name}", sum(t.size for t in tensors.values())) as advance:

            def read(name: str, start: int, stop: int) -> Float32Array:
                values = source.rows(name, start, stop)
                advance(values.size)
                return values

            write_safetensors(folder / SINGLE, tensors, read)
