"""The built-in model imported: its tokenizer equals llama.cpp's, and so does what it says."""

from __future__ import annotations

import sysconfig
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from edgeadapt.base_model import default_gguf, import_base
from edgeadapt.gguf_io import GgufFile
from edgeadapt.importers.gguf_tokenizer import PRE_TOKENIZERS, write_tokenizer
from edgeadapt.tokenizer import ModelTokenizer
from tests.importers.gguf_files import write_gguf
from tests.llama_vocabulary import LlamaCpp

pytestmark = pytest.mark.e2e

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<jupyter_code>"]

TRICKY = [
    "", " ", "  ", "\n", "\r\n\r\n", "\t\t x", "a  b   c    d", " leading", "trailing   ",
    "line\n  indented\n\n\n    more   \n", "1234567890 3.14159 1e-9 0x1F ١٢٣ ² ½ Ⅷ",
    "don't DON'T we'll I'M they've it's 'twas ſ'ſ", "naïve café — “quotes” … ‘x’",
    "日本語のテキスト、中文字符。한국어", "مرحبا بالعالم हिन्दी ไทย",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈 e\u0301 \u200b\ufeff\u00a0\u3000x",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", "<|im_start|><|im_start|>",
    "a<|im_end|>b <|im_end|> c", "<|im_start <|im_end| |im_end|>", "<repo_name>x<file_sep>y.py",
    "def f(x):\n    return x ** 2  # squared\n", "{{ x }} {% if y %} <tag attr='v'/> &amp;",
    "\x00\x01\x7f\x85\u2028\u2029", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 \U0001f9ea", "a" * 40,
]  # fmt: skip


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return import_base("default", tmp_path_factory.mktemp("import") / "smollm2")


@pytest.fixture(scope="module")
def ours(imported: Path) -> ModelTokenizer:
    return ModelTokenizer.from_folder(imported)


@pytest.fixture(scope="module")
def llama() -> Iterator[LlamaCpp]:
    model = LlamaCpp(default_gguf())
    yield model
    model.close()


def spelled(tokens: list[str]) -> frozenset[str]:
    """Byte-level symbols that are tokens by themselves.

    SmolLM2's vocabulary lacks 21 bytes: six control characters, the first byte of code points
    from U+40000 on but for private use, and bytes that UTF-8 never has. Both tokenizers drop
    them, `tokenizers` before merging and llama.cpp after it, so their neighbours may differ.
    """
    return frozenset(token for token in tokens if len(token) == 1)


@pytest.fixture(scope="module")
def symbols() -> frozenset[str]:
    return spelled(GgufFile(default_gguf()).strings("tokenizer.ggml.tokens"))


def byte_symbols() -> dict[int, str]:
    """GPT-2's printable stand-in for every byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {
        byte: chr(256 + index) for index, byte in enumerate(rest)
    }


BYTES = byte_symbols()


def in_vocabulary(text: str, symbols: frozenset[str]) -> bool:
    return all(BYTES[byte] in symbols for byte in text.encode())


def library_files(count: int) -> list[str]:
    folder = Path(sysconfig.get_path("stdlib"))
    return [
        path.read_text(encoding="utf-8", errors="ignore")
        for path in sorted(folder.glob("*.py"))[:count]
    ]


def test_python_sources(ours: ModelTokenizer, llama: LlamaCpp) -> None:
    files = library_files(80)
    assert sum(len(text) for text in files) > 1_000_000
    for text in files:
        assert ours.encode(text) == llama.encode(text)


@pytest.mark.parametrize("text", TRICKY)
def test_tricky_text(ours: ModelTokenizer, llama: LlamaCpp, text: str) -> None:
    assert ours.encode(text) == llama.encode(text)


def test_every_assigned_character(
    ours: ModelTokenizer, llama: LlamaCpp, symbols: frozenset[str]
) -> None:
    assigned = [
        char
        for char in map(chr, range(0x110000))
        if unicodedata.category(char) not in ("Cs", "Cn") and in_vocabulary(char, symbols)
    ]
    assert len(assigned) > 250_000
    for start in range(0, len(assigned), 64):
        block = assigned[start : start + 64]
        text = "".join(f"a{char}b {char}{char}1 '{char}" for char in block)
        assert ours.encode(text) == llama.encode(text), f"from {ord(block[0]):x}"


PIECES = st.one_of(
    st.text(max_size=12),
    st.sampled_from([*SPECIAL, *TRICKY, " ", "\n", "'s", "'ll", "\u00a0", "<|", "|>"]),
    st.from_regex(r"[ \t\r\n]{1,6}|[0-9]{1,9}|[A-Za-z]{1,9}", fullmatch=True),
)


@settings(deadline=None, max_examples=1500)
@given(st.lists(PIECES, max_size=8).map("".join))
def test_any_text(
    ours: ModelTokenizer, llama: LlamaCpp, symbols: frozenset[str], text: str
) -> None:
    text = "".join(char for char in text if in_vocabulary(char, symbols))
    ids = ours.encode(text)
    assert ids == llama.encode(text)
    assert ours.decode(ids) == text


def test_transformers_reads_the_same_tokenizer(imported: Path, ours: ModelTokenizer) -> None:
    theirs = AutoTokenizer.from_pretrained(imported)
    for text in [*TRICKY, *library_files(3)]:
        assert theirs.encode(text) == ours.encode(text)
        assert theirs.decode(theirs.encode(text)) == ours.decode(ours.encode(text))
    chat = [{"role": "user", "content": "Hi"}]
    rendered = theirs.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert rendered == ours.render(chat, add_generation_prompt=True)
    assert ours.stop_ids == {2, 0}


def vocabulary_gguf(path: Path, pre: str) -> Path:
    """The built-in model's vocabulary alone, claiming other rules for splitting text."""
    source = GgufFile(default_gguf())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(8192)
    writer.add_embedding_length(576)
    writer.add_block_count(1)
    writer.add_feed_forward_length(1536)
    writer.add_head_count(9)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(source.strings("tokenizer.ggml.tokens"))
    writer.add_token_types(source.metadata["tokenizer.ggml.token_type"])
    writer.add_token_merges(source.strings("tokenizer.ggml.merges"))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_every_way_of_splitting_text(tmp_path: Path, symbols: frozenset[str], pre: str) -> None:
    path = vocabulary_gguf(tmp_path / "vocabulary.gguf", pre)
    write_tokenizer(GgufFile(path), tmp_path, 49152)
    ours, llama = ModelTokenizer.from_folder(tmp_path), LlamaCpp(path)

    first = next(n for n, rules in PRE_TOKENIZERS.items() if rules == PRE_TOKENIZERS[pre])

    @settings(deadline=None, max_examples=300 if pre == first else 20)
    @given(st.lists(PIECES, max_size=8).map("".join))
    def check(text: str) -> None:
        text = "".join(char for char in text if in_vocabulary(char, symbols))
        assert ours.encode(text) == llama.encode(text)
        added = ours.encode(text, add_special_tokens=True)
        assert added == llama.encode(text, add_special=True)

    try:
        check()
        for text in library_files(6):
            assert ours.encode(text) == llama.encode(text)
    finally:
        llama.close()


def test_the_model_says_what_llama_cpp_says(
    imported: Path, ours: ModelTokenizer, tmp_path: Path
) -> None:
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = ours.encode(ours.render(chat, add_generation_prompt=True))
    model = AutoModelForCausalLM.from_pretrained(imported)
    with torch.no_grad():
        ids = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=20)[0].tolist()
        expected = model(torch.tensor([ids])).logits[0].numpy()
    assert "Paris" in ours.decode(ids[len(prompt) :])
    del model

    exact = LlamaCpp(write_gguf(imported, tmp_path / "f32.gguf"), vocab_only=False)
    np.testing.assert_allclose(exact.logits(ids), expected, rtol=0, atol=1e-3)
    exact.close()

    # with quantized weights llama.cpp rounds activations to 8 bits too: close, not equal
    original = LlamaCpp(default_gguf(), vocab_only=False)
    found = torch.from_numpy(original.logits(ids)).log_softmax(-1)
    original.close()
    reference = torch.from_numpy(expected).log_softmax(-1)
    divergence = (reference.exp() * (reference - found)).sum(-1)
    assert divergence.mean() < 0.02
    assert divergence.max() < 0.1
