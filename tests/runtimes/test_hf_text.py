"""Bytes of single tokens for byte-level, byte-fallback and Metaspace tokenizers."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from edgeadapt.runtimes.hf_text import TokenPieces
from edgeadapt.tokenizer import ModelTokenizer
from tests.tiny import save_tokenizer


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> ModelTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return ModelTokenizer.from_folder(folder)


@given(text=st.text(max_size=40))
def test_byte_level_pieces_add_up(byte_level: ModelTokenizer, text: str) -> None:
    pieces = TokenPieces(byte_level.backend)
    ids = byte_level.encode(text)
    plain = [token for token in ids if token > 2]
    joined = b"".join(pieces.of(token) for token in plain)
    if plain == ids:
        assert joined == text.encode()


def test_control_tokens_have_no_bytes(byte_level: ModelTokenizer) -> None:
    pieces = TokenPieces(byte_level.backend)
    assert [pieces.of(token) for token in (0, 1, 2)] == [b"", b"", b""]
    assert pieces.of(10**6) == b""


def test_added_tokens_that_are_text_keep_it(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    backend = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.add_tokens([AddedToken("Größe ", special=False)])
    pieces = TokenPieces(backend)
    assert pieces.of(backend.token_to_id("Größe ")) == "Größe ".encode()


def sentence_piece(decoder: decoders.Decoder) -> Tokenizer:
    vocabulary = {"<unk>": 0, "▁Hi": 1, "▁": 2, "lo▁x": 3}
    vocabulary |= {f"<0x{byte:02X}>": 4 + byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.add_special_tokens(["<unk>"])
    tokenizer.decoder = decoder
    return tokenizer


@pytest.mark.parametrize(
    "decoder",
    [
        decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
        decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]),
    ],
)
def test_sentence_piece(decoder: decoders.Decoder) -> None:
    pieces = TokenPieces(sentence_piece(decoder))
    assert [pieces.of(token) for token in range(4)] == [b"", b" Hi", b" ", b"lo x"]
    assert [pieces.of(4 + byte) for byte in range(256)] == [bytes([byte]) for byte in range(256)]


def test_byte_tokens_are_text_without_byte_fallback() -> None:
    tokenizer = Tokenizer(models.BPE({"<0x41>": 0, "a": 1}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.Fuse()
    assert TokenPieces(tokenizer).of(0) == b"<0x41>"
