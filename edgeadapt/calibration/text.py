"""Calibration text as chunks of token ids."""

from __future__ import annotations

from pathlib import Path

from edgeadapt.data.encode import encode_dataset
from edgeadapt.errors import CorruptFileError, InputError
from edgeadapt.tokenizer import ModelTokenizer

CHUNK_TOKENS = 512
"""llama.cpp's default."""


def token_chunks(
    path: Path, tokenizer: ModelTokenizer, limit: int, chunk_tokens: int = CHUNK_TOKENS
) -> list[list[int]]:
    """Chunks of at most `chunk_tokens` ids, evenly spaced over the data.

    Examples follow each other as the model would see them, chat template and all; a .txt file is
    taken as it is. The last chunk may be shorter; single tokens are left out.

    Args:
        path: a dataset (see `load_examples`), or a .txt file in UTF-8.
        tokenizer: the model's.
        limit: most chunks.
        chunk_tokens: length of a chunk.

    Raises:
        InputError: the data cannot be read, or there is no text in it.
    """
    if path.suffix.lower() == ".txt":
        ids = tokenizer.encode(read_text(path), add_special_tokens=True)
    else:
        # Twice what is needed: chunks are picked from a stream, and examples are short or long.
        encoded = encode_dataset(path, tokenizer, 2 * chunk_tokens, limit=limit * chunk_tokens // 8)
        ids = [token for example in encoded for token in example.ids]
    chunks = [ids[i : i + chunk_tokens] for i in range(0, len(ids), chunk_tokens)]
    chunks = [chunk for chunk in chunks if len(chunk) > 1]
    if not chunks:
        raise InputError(f"{path} holds no text to calibrate with")
    if len(chunks) <= limit:
        return chunks
    return [chunks[index * len(chunks) // limit] for index in range(limit)]


def read_text(path: Path) -> str:
    """A text file.

    Raises:
        InputError: it cannot be read.
        CorruptFileError: it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise CorruptFileError(f"{path} is not UTF-8 text") from error
