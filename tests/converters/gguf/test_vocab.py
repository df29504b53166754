"""Vocabularies give the tokens in llama.cpp that they give in Hugging Face's library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeadapt.converters.gguf import sentencepiece
from edgeadapt.converters.gguf.pretokenizers import name_of
from edgeadapt.errors import CorruptFileError, EdgeAdaptError, UnsupportedError
from edgeadapt.gguf_io import GgufFile
from tests.converters.gguf.test_families import convert
from tests.tiny import CORPUS, save_model

pytest.importorskip("llama_cpp")

TEXTS = (
    "The quick brown fox",
    "two  spaces and   three",
    " leading, trailing ",
    "12345 naïve café 日本語 🙂",
    "line\n\nline",
    "<s>x</s> <|user|> hi",
)
SPACE = "\u2581"


def bpe_record() -> dict[str, Any]:
    """A tokenizer.json as transformers makes one of a SentencePiece BPE model."""
    from tokenizers import Tokenizer, models, normalizers, trainers

    raw = Tokenizer(models.BPE())
    raw.normalizer = normalizers.Replace(" ", SPACE)
    raw.train_from_iterator(
        [f" {text}" for text in CORPUS * 4],
        trainers.BpeTrainer(vocab_size=150, show_progress=False),
    )
    made = json.loads(raw.to_str())["model"]
    bases = sorted(set("".join(made["vocab"])))
    joined = [left + right for left, right in made["merges"]]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *joined, *bases]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    merges = [
        (token[:cut], token[cut:])
        for token in joined
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]
    size = len(vocabulary)
    return {
        "version": "1.0",
        "added_tokens": [
            added(0, "<unk>", True), added(1, "<s>", True), added(2, "</s>", True),
            added(size, "<|user|>", False),
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE", "unk_token": "<unk>", "byte_fallback": True, "fuse_unk": True,
            "vocab": vocabulary, "merges": [list(merge) for merge in merges],
        },
    }  # fmt: skip


def unigram_record() -> dict[str, Any]:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    raw = Tokenizer(models.Unigram())
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>",
        show_progress=False,
    )  # fmt: skip
    raw.train_from_iterator(CORPUS * 4, trainer)
    made: dict[str, Any] = json.loads(raw.to_str())
    return made


def added(index: int, text: str, special: bool) -> dict[str, Any]:
    return {
        "id": index, "content": text, "special": special, "normalized": False, "lstrip": False,
        "rstrip": False, "single_word": False,
    }  # fmt: skip


def model_with(folder: Path, record: dict[str, Any], vocab_size: int = 640) -> Path:
    save_model(folder, "llama", vocab_size=vocab_size, tokenizer=False)
    (folder / "tokenizer.json").write_text(json.dumps(record))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": False}
        )
    )
    return folder


@pytest.mark.parametrize("made", [bpe_record, unigram_record])
def test_tokens_equal_hugging_faces(made: Any, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    from tests.llama_vocabulary import LlamaCpp

    folder = model_with(tmp_path / "m", made())
    reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
    engine = LlamaCpp(convert(folder, tmp_path / "m.gguf"))
    texts = TEXTS if made is bpe_record else TEXTS[:1]
    for text in texts:
        if "<" in text:  # how text after a special token begins is told apart by version
            continue
        assert engine.encode(text) == reference.encode(text, add_special_tokens=False).ids, text
    engine.close()


def test_kinds_of_tokens(tmp_path: Path) -> None:
    record = bpe_record()
    file = GgufFile(convert(model_with(tmp_path / "m", record), tmp_path / "m.gguf"))
    tokens = file.strings("tokenizer.ggml.tokens")
    kinds = dict(zip(tokens, file.get("tokenizer.ggml.token_type", list), strict=True))
    assert file.get("tokenizer.ggml.model", str) == "llama" and len(tokens) == 640
    assert [kinds[t] for t in ("<unk>", "<s>", "<0x41>", "<|user|>", "[PAD639]")] == [3, 3, 6, 3, 5]
    assert file.get("tokenizer.ggml.add_bos_token", bool) is False
    assert file.get("tokenizer.ggml.add_space_prefix", bool, True)  # what llama.cpp assumes
    assert file.get("tokenizer.ggml.eos_token_id", int) == 2


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(number: int, value: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(value)) + value


def piece(text: str, score: float, kind: int) -> bytes:
    import struct

    body = field(1, text.encode()) + varint(2 << 3 | 5) + struct.pack("<f", score)
    return field(1, body + varint(3 << 3) + varint(kind))


MODEL = (
    piece("<unk>", 0.0, 2)
    + piece("<s>", 0.0, 3)
    + piece("<0x0A>", 0.0, 6)
    + piece("\u2581a", -1.5, 1)
    + piece("<mask>", 0.0, 4)
    + field(2, varint(3 << 3) + varint(2))
    + field(3, field(1, b"nmt") + varint(3 << 3) + varint(0))
)


def test_tokenizer_model_is_read(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(MODEL)
    pieces = sentencepiece.read_model(tmp_path / "tokenizer.model")
    assert pieces.tokens == ["<unk>", "<s>", "<0x0A>", "\u2581a", "<mask>"]
    assert pieces.scores == [0.0, 0.0, 0.0, -1.5, 0.0]
    assert [int(kind) for kind in pieces.types] == [2, 3, 6, 1, 1]
    assert not pieces.unigram and pieces.prefix_space is False


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.one_of(st.binary(), st.integers(0, len(MODEL) - 1).map(lambda n: MODEL[:n])))
def test_damaged_tokenizer_model(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(data)
    try:
        pieces = sentencepiece.read_model(path)
    except CorruptFileError as error:
        assert "SentencePiece" in str(error)
    else:  # cut between two fields
        assert pieces.tokens


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"type": "WordPiece", "vocab": {}}, UnsupportedError),
        ({"type": "Unigram", "vocab": [["a"]]}, CorruptFileError),
        ({"type": "BPE", "byte_fallback": True, "vocab": {"a": 0, "b": 2}}, CorruptFileError),
        (
            {"type": "BPE", "byte_fallback": True, "vocab": {"a": 0}, "merges": [3]},
            CorruptFileError,
        ),
    ],
)
def test_unusable_vocabularies(
    change: dict[str, Any], error: type[EdgeAdaptError], tmp_path: Path
) -> None:
    folder = model_with(tmp_path / "m", {"model": change, "added_tokens": []})
    with pytest.raises(error):
        convert(folder, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_more_pieces_than_embeddings(tmp_path: Path) -> None:
    folder = model_with(tmp_path / "m", bpe_record(), vocab_size=100)
    with pytest.raises(CorruptFileError, match="do not belong together"):
        convert(folder, tmp_path / "m.gguf")


LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(pattern: str) -> dict[str, Any]:
    return {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ],
    }


@pytest.mark.parametrize(
    ("pattern", "ignore_merges", "name"),
    [
        (LLAMA3, True, "llama-bpe"),
        (LLAMA3, False, "dbrx"),
        (LLAMA3.replace("{1,3}", ""), False, "qwen2"),
        (TEKKEN, True, "tekken"),
    ],
)
def test_pre_tokenizers_by_their_spelling(pattern: str, ignore_merges: bool, name: str) -> None:
    record = {"pre_tokenizer": split(pattern), "model": {"ignore_merges": ignore_merges}}
    assert name_of(record) == name


@pytest.mark.parametrize(
    ("pattern", "ignore_merges"),
    [(LLAMA3.replace("{1,3}", ""), True), (TEKKEN, False), (LLAMA3 + "|x", True)],
)
def test_unknown_pre_tokenizers(pattern: str, ignore_merges: bool) -> None:
    record = {"pre_tokenizer": split(pattern), "model": {"ignore_merges": ignore_merges}}
    with pytest.raises(UnsupportedError):
        name_of(record)
