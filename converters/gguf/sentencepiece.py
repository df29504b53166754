"""SentencePiece vocabularies: pieces, scores and types, from tokenizer.model or tokenizer.json.

tokenizer.model is a protobuf message, read here field by field (the `sentencepiece` package is
not needed for that): https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

from edgeadapt.errors import CorruptFileError, InputError, UnsupportedError

ADDED_SCORE = -1000.0
"""What llama.cpp's converter gives to tokens that no merge may produce."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_BYTE_PIECE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_UNIGRAM, _BPE = 1, 2

# Types of a piece in the protobuf; a piece defined by the user is plain to llama.cpp's converter.
_TYPES = {
    1: gguf.TokenType.NORMAL,
    2: gguf.TokenType.UNKNOWN,
    3: gguf.TokenType.CONTROL,
    4: gguf.TokenType.NORMAL,
    5: gguf.TokenType.UNUSED,
    6: gguf.TokenType.BYTE,
}


@dataclass
class Pieces:
    """A vocabulary by id, and how text is prepared for it."""

    tokens: list[str]
    scores: list[float]
    types: list[gguf.TokenType]
    unigram: bool = False
    """Whether text is split into the likeliest pieces, and not by merging the best pair."""
    prefix_space: bool = True
    """Whether text begins with an invisible space."""
    merge_spaces: bool = False
    """Whether runs of spaces count as one."""
    charsmap: bytes = b""
    """SentencePiece's table of characters to replace."""

    def pad(self, size: int) -> None:
        """Add unused placeholders up to `size` tokens."""
        for index in range(len(self.tokens), size):
            self.put(index, f"[PAD{index}]", -10000.0, gguf.TokenType.UNUSED)

    def put(self, index: int, token: str, score: float, kind: gguf.TokenType) -> None:
        """Set one token, at most one past the end."""
        if index == len(self.tokens):
            self.tokens.append(token)
            self.scores.append(score)
            self.types.append(kind)
        else:
            self.tokens[index], self.scores[index], self.types[index] = token, score, kind


def read_model(path: Path) -> Pieces:
    """A tokenizer.model.

    Raises:
        CorruptFileError: it is not a SentencePiece model.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    pieces = Pieces([], [], [])
    try:
        for number, value in _fields(data):
            if number == 1:
                _add_piece(pieces, value)
            elif number == 2:
                pieces.unigram = dict(_fields(value)).get(3, _UNIGRAM) == _UNIGRAM
            elif number == 3:
                normalizer = dict(_fields(value))
                pieces.charsmap = bytes(normalizer.get(2, b""))
                pieces.prefix_space = bool(normalizer.get(3, 1))
                pieces.merge_spaces = bool(normalizer.get(4, 1))
    except (IndexError, struct.error, TypeError, KeyError, UnicodeDecodeError) as error:
        raise CorruptFileError(f"{path} is not a SentencePiece model: {error!r}") from error
    if not pieces.tokens:
        raise CorruptFileError(f"{path} is not a SentencePiece model: it has no pieces")
    return pieces


def read_tokenizer_json(record: dict[str, Any]) -> Pieces:
    """The same from a tokenizer.json that was made of a SentencePiece model.

    BPE has merges and no scores there; a piece's score is the negated rank of the first merge
    that makes it, so that llama.cpp, which merges by score, merges in the same order.

    Raises:
        UnsupportedError: it is not of SentencePiece's kind.
        CorruptFileError: the vocabulary is malformed.
    """
    model = record.get("model") or {}
    try:
        if model.get("type") == "Unigram":
            pieces = _unigram(model)
        elif model.get("type") == "BPE" and model.get("byte_fallback"):
            pieces = _bpe(model)
        else:
            raise UnsupportedError(
                f"the tokenizer is of type {model.get('type')!r} without byte fallback; expected "
                "byte-level BPE, or BPE with byte fallback or Unigram as SentencePiece has them"
            )
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise CorruptFileError(f"tokenizer.json has a malformed vocabulary: {error!r}") from error
    pieces.prefix_space = _prefix_space(record)
    for step in _steps(record.get("normalizer"), "normalizers"):
        if step.get("type") == "Precompiled":
            try:
                pieces.charsmap = base64.b64decode(step.get("precompiled_charsmap") or "")
            except (binascii.Error, TypeError) as error:
                raise CorruptFileError("tokenizer.json has a malformed charsmap") from error
        elif step.get("type") == "Replace" and (step.get("pattern") or {}).get("Regex") == " {2,}":
            pieces.merge_spaces = True
    return pieces


def _add_piece(pieces: Pieces, message: Any) -> None:
    fields = dict(_fields(message))
    score = struct.unpack("<f", fields.get(2, b"\0\0\0\0"))[0]
    text = bytes(fields[1]).decode("utf-8")
    pieces.put(len(pieces.tokens), text, score, _TYPES[fields.get(3, 1)])


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field of a protobuf message: int or bytes."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        kind = key & 7
        value: Any
        if kind == _VARINT:
            value, position = _varint(data, position)
        else:
            if kind == _BYTES:
                size, position = _varint(data, position)
            else:
                size = {_FIXED64: 8, _FIXED32: 4}[kind]
            if size > len(data) - position:
                raise IndexError(f"a field of {size} bytes ends past the end")
            value = data[position : position + size]
            position += size
        yield key >> 3, value


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, position
        if shift > 63:
            raise IndexError("a number of more than 64 bits")


def _unigram(model: dict[str, Any]) -> Pieces:
    unknown = model.get("unk_id")
    pieces = Pieces([], [], [], unigram=True)
    for index, (text, score) in enumerate(model["vocab"]):
        kind = gguf.TokenType.UNKNOWN if index == unknown else _kind(str(text))
        pieces.put(index, str(text), float(score), kind)
    return pieces


def _bpe(model: dict[str, Any]) -> Pieces:
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(model.get("merges") or []):
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        ranks.setdefault(left + right, rank)
    by_id = {int(index): str(text) for text, index in model["vocab"].items()}
    if sorted(by_id) != list(range(len(by_id))):
        raise ValueError("ids are not consecutive")
    last = float(len(ranks))
    pieces = Pieces([], [], [])
    for index in range(len(by_id)):
        text = by_id[index]
        kind = gguf.TokenType.UNKNOWN if text == model.get("unk_token") else _kind(text)
        pieces.put(index, text, -float(ranks.get(text, last)), kind)
    return pieces


def _kind(text: str) -> gguf.TokenType:
    return gguf.TokenType.BYTE if _BYTE_PIECE.fullmatch(text) else gguf.TokenType.NORMAL


def _prefix_space(record: dict[str, Any]) -> bool:
    """Whether normalizer or pre-tokenizer put a space before text."""
    for step in _steps(record.get("normalizer"), "normalizers"):
        if step.get("type") == "Prepend":
            return True
    for step in _steps(record.get("pre_tokenizer"), "pretokenizers"):
        if step.get("type") == "Metaspace":
            return (step.get("prepend_scheme") or "always") != "never"
    return False


def _steps(node: dict[str, Any] | None, children: str) -> Iterator[dict[str, Any]]:
    if node is None:
        return
    if node.get("type") == "Sequence":
        for child in node.get(children) or []:
            yield from _steps(child, children)
    else:
        yield node
