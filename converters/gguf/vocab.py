"""The vocabulary, merges, special tokens and chat template of a GGUF file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf

from edgeadapt.converters.gguf import sentencepiece
from edgeadapt.converters.gguf.pretokenizers import name_of
from edgeadapt.converters.gguf.special import add_special
from edgeadapt.errors import CorruptFileError
from edgeadapt.files import read_json
from edgeadapt.tokenizer import ModelTokenizer

# Added tokens that are not flagged as special, and yet must never be matched in plain text.
_LOOKS_SPECIAL = ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
_SPECIAL_EDGES = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))


def add_vocabulary(
    writer: gguf.GGUFWriter, folder: Path, vocab_size: int, prefix_space: bool | None = None
) -> None:
    """Write every tokenizer key, from tokenizer.model or tokenizer.json and the files beside it.

    Args:
        writer: of the GGUF file.
        folder: the model's Hugging Face folder.
        vocab_size: rows of the embedding; ids without a token become unused placeholders.
        prefix_space: whether text of SentencePiece tokens begins with a space, where the model's
            family says so; None to go by the tokenizer.

    Raises:
        UnsupportedError: the tokenizer is of a kind that llama.cpp has no equal of.
        CorruptFileError: it is damaged, or has more tokens than the model has embeddings.
    """
    config = _optional_json(folder / "tokenizer_config.json")
    record = _optional_json(folder / "tokenizer.json")
    path = folder / "tokenizer.model"
    if path.is_file():
        pieces = sentencepiece.read_model(path)
        pieces.prefix_space = pieces.prefix_space if prefix_space is None else prefix_space
        _add_pieces(writer, folder, pieces, vocab_size, record, config)
    elif _is_byte_level(record):
        _add_byte_level(writer, folder, record, config, vocab_size)
    else:
        _check_size(len((record.get("model") or {}).get("vocab") or ()), vocab_size)
        pieces = sentencepiece.read_tokenizer_json(record)
        _add_pieces(writer, folder, pieces, vocab_size, record, config)


def _is_byte_level(record: dict[str, Any]) -> bool:
    model = record.get("model") or {}
    return model.get("type") == "BPE" and not model.get("byte_fallback")


def _add_byte_level(
    writer: gguf.GGUFWriter,
    folder: Path,
    record: dict[str, Any],
    config: dict[str, Any],
    vocab_size: int,
) -> None:
    tokenizer = ModelTokenizer.from_folder(folder)
    tokens, kinds = _token_list(tokenizer, record, vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name_of(record))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    add_special(writer, folder, record, config, vocab_size, merges=True)


def _add_pieces(
    writer: gguf.GGUFWriter,
    folder: Path,
    pieces: sentencepiece.Pieces,
    vocab_size: int,
    record: dict[str, Any],
    config: dict[str, Any],
) -> None:
    """A SentencePiece vocabulary: llama.cpp calls BPE `llama` and Unigram `t5`.

    Its converter takes an unknown token that is listed as special for a control token, as any
    other; so do we.
    """
    _check_size(len(pieces.tokens), vocab_size)
    pieces.pad(vocab_size)
    for index, text, special in _added_tokens(folder, record, config):
        if index >= vocab_size:
            raise _too_many(index, vocab_size)
        control = special or _looks_special(text)
        kind = gguf.TokenType.CONTROL if control else gguf.TokenType.USER_DEFINED
        text = text if control else text.replace("\u2581", " ")
        if pieces.types[index] != gguf.TokenType.BYTE:
            pieces.put(index, text, sentencepiece.ADDED_SCORE, kind)
    writer.add_tokenizer_model("t5" if pieces.unigram else "llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(pieces.tokens)
    writer.add_token_scores(pieces.scores)
    writer.add_token_types([int(kind) for kind in pieces.types])
    add_special(writer, folder, record, config, vocab_size, merges=False)
    if pieces.unigram or not pieces.prefix_space:  # llama.cpp takes yes for granted
        writer.add_add_space_prefix(pieces.prefix_space)
    if pieces.unigram:
        writer.add_remove_extra_whitespaces(pieces.merge_spaces)
        if pieces.charsmap:
            writer.add_precompiled_charsmap(pieces.charsmap)


def _added_tokens(
    folder: Path, record: dict[str, Any], config: dict[str, Any]
) -> Iterator[tuple[int, str, bool]]:
    """Id, text and whether special, of the tokens beside the SentencePiece model."""
    added = _optional_json(folder / "added_tokens.json")
    yield from ((int(index), str(text), False) for text, index in added.items())
    decoder = config.get("added_tokens_decoder") or {}
    if decoder:
        entries = [(int(index), entry) for index, entry in decoder.items()]
    else:
        entries = [(int(entry["id"]), entry) for entry in record.get("added_tokens") or []]
    for index, entry in entries:
        yield index, str(entry["content"]), bool(entry.get("special"))


def _check_size(tokens: int, vocab_size: int) -> None:
    if tokens > vocab_size:
        raise _too_many(tokens - 1, vocab_size)


def _too_many(index: int, vocab_size: int) -> CorruptFileError:
    return CorruptFileError(
        f"the tokenizer has a token with id {index}, but the model embeds {vocab_size} tokens; "
        "they do not belong together"
    )


def _token_list(
    tokenizer: ModelTokenizer, record: dict[str, Any], vocab_size: int
) -> tuple[list[str], list[int]]:
    """Text and kind of each id."""
    by_id = {index: token for token, index in tokenizer.backend.get_vocab(True).items()}
    if by_id and max(by_id) >= vocab_size:
        raise _too_many(max(by_id), vocab_size)
    added = {entry["id"]: entry for entry in record.get("added_tokens") or []}
    tokens, kinds = [], []
    for index in range(vocab_size):
        token = by_id.get(index)
        if token is None:
            tokens.append(f"[PAD{index}]")
            kinds.append(int(gguf.TokenType.UNUSED))
        elif index in added:
            text, kind = _added(tokenizer, token, added[index])
            tokens.append(text)
            kinds.append(int(kind))
        else:
            tokens.append(token)
            kinds.append(int(gguf.TokenType.NORMAL))
    return tokens, kinds


def _added(
    tokenizer: ModelTokenizer, token: str, entry: dict[str, Any]
) -> tuple[str, gguf.TokenType]:
    """llama.cpp wants added tokens as they read after the tokenizer's own normalization."""
    if not entry.get("normalized"):
        token = tokenizer.decode(tokenizer.encode(token)) or token
    if entry.get("special") or _looks_special(token):
        return token, gguf.TokenType.CONTROL
    return token.replace("\u2581", " "), gguf.TokenType.USER_DEFINED


def _looks_special(token: str) -> bool:
    return token in _LOOKS_SPECIAL or any(
        token.startswith(start) and token.endswith(end) for start, end in _SPECIAL_EDGES
    )


def _optional_json(path: Path) -> dict[str, Any]:
    value = read_json(path) if path.is_file() else {}
    if not isinstance(value, dict):
        raise CorruptFileError(f"{path} holds {type(value).__name__}, expected an object")
    return value
