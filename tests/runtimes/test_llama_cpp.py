"""llama.cpp's logits equal torch's, in one piece or in chunks; damaged files are named."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeadapt.artifact import Artifact
from edgeadapt.errors import CorruptFileError, InputError
from edgeadapt.runtimes import SessionSettings, get_runtime
from edgeadapt.tokenizer import ModelTokenizer

pytest.importorskip("llama_cpp")

from edgeadapt.runtimes.llama_cpp.library import parse_features
from edgeadapt.runtimes.llama_cpp.session import LlamaCppSession

TEXT = "def main(): return 42 # naïve café — 日本語 🙂 The quick brown fox jumps over the dog."


def load(path: Path, **settings: object) -> LlamaCppSession:
    options = {"threads": 2, "context": 256} | settings
    session = get_runtime("llama-cpp").load(
        Artifact(path, "gguf", "F32"), SessionSettings(**options)
    )
    assert isinstance(session, LlamaCppSession)
    return session


@pytest.fixture(scope="module")
def exact(tiny_gguf: Path) -> Iterator[LlamaCppSession]:
    session = load(tiny_gguf, exact=True)
    yield session
    session.close()


def test_logits_equal_those_of_torch(exact: LlamaCppSession, tiny_model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    ids = exact.encode(TEXT)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    assert np.abs(exact.all_logits(ids) - expected).max() < 1e-3
    assert expected.std() > 0.05  # so that 1e-3 means something


def test_forward_in_chunks_gives_the_last_of_all_logits(exact: LlamaCppSession) -> None:
    ids = exact.encode(TEXT)
    every = exact.all_logits(ids)
    assert every.shape == (len(ids), exact.vocab_size)
    for chunk in (1, 7, len(ids)):
        exact.reset()
        for start in range(0, len(ids), chunk):
            exact.forward(ids[start : start + chunk])
            end = min(start + chunk, len(ids))
            assert exact.position == end
            np.testing.assert_allclose(exact.last_logits(), every[end - 1], atol=1e-4)
            assert exact.greedy() == int(exact.last_logits().argmax())


def test_more_tokens_than_one_batch_of_logits(tiny_gguf: Path) -> None:
    session = load(tiny_gguf, context=700, exact=True)
    ids = (session.encode(TEXT) * 20)[:600]
    every = session.all_logits(ids)
    session.reset()
    session.forward(ids[:555])
    np.testing.assert_allclose(session.last_logits(), every[554], atol=1e-4)
    session.close()


def test_exact_settings_round_less_than_the_defaults(
    exact: LlamaCppSession, tiny_gguf: Path
) -> None:
    default = load(tiny_gguf)
    ids = exact.encode(TEXT)
    assert not np.array_equal(default.all_logits(ids), exact.all_logits(ids))
    default.close()


def test_last_logits_are_a_copy(exact: LlamaCppSession) -> None:
    exact.reset()
    exact.forward([5])
    before = exact.last_logits()
    kept = before.copy()
    exact.forward([9])
    np.testing.assert_array_equal(before, kept)


@given(text=st.text(max_size=40))
def test_text_survives_tokens(exact: LlamaCppSession, text: str) -> None:
    ids = exact.encode(text)
    assert b"".join(map(exact.token_bytes, ids)).decode() == text


def test_tokens_and_template_equal_those_of_the_folder(
    exact: LlamaCppSession, tiny_model: Path
) -> None:
    tokenizer = ModelTokenizer.from_folder(tiny_model)
    messages = [{"role": "user", "content": TEXT}]
    text = exact.render(messages)
    assert text == tokenizer.render(messages, add_generation_prompt=True)
    assert exact.encode(text) == tokenizer.encode(text)


def test_stop_tokens_are_those_of_the_file_and_stand_for_no_text(exact: LlamaCppSession) -> None:
    assert 2 in exact.stop_ids  # <|im_end|>
    assert exact.token_bytes(2) == b""


def test_generation_stops_at_the_limit_and_repeats(exact: LlamaCppSession) -> None:
    ids = exact.encode("The quick")
    exact.reset()
    first = list(exact.generate(ids, max_tokens=12))
    exact.reset()
    assert list(exact.generate(ids, max_tokens=12)) == first
    assert 0 < len(first) <= 12


def test_too_many_tokens_and_wrong_ids_are_refused(exact: LlamaCppSession) -> None:
    exact.reset()
    exact.forward([1, 2, 3])
    with pytest.raises(InputError, match="258 tokens do not fit a context of 256"):
        exact.forward([1] * 255)
    with pytest.raises(InputError, match="another model"):
        exact.forward([exact.vocab_size])
    with pytest.raises(InputError, match="no tokens"):
        exact.forward([])
    assert exact.position == 3


def test_the_build_says_what_it_is(exact: LlamaCppSession) -> None:
    info = exact.build_info()
    assert all(info.values()), info
    assert info["llama-cpp-python"] == get_runtime("llama-cpp").version()
    assert exact.threads_in_use() == 2


def test_features_are_read_from_the_system_line() -> None:
    line = "CPU : SSE3 = 1 | AVX2 = 1 | AVX512 = 0 | REPACK = 1 | CUDA : ARCHS = 870 | "
    assert parse_features(line) == ("SSE3", "AVX2", "REPACK", "ARCHS")


def test_damaged_files_are_named(tiny_gguf: Path, tmp_path: Path) -> None:
    whole = tiny_gguf.read_bytes()
    for size in (0, 3, 100, len(whole) // 2, len(whole) - 1):
        path = tmp_path / f"{size}.gguf"
        path.write_bytes(whole[:size])
        with pytest.raises(CorruptFileError, match="cannot load") as caught:
            load(path)
        assert "no reason given" not in str(caught.value)


def test_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="loads GGUF files"):
        get_runtime("llama-cpp").load(Artifact(tmp_path, "onnx", "int4"), SessionSettings(1))


def test_nothing_is_printed_while_loading_and_running(tiny_gguf: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from edgeadapt.artifact import Artifact;"
        "from edgeadapt.runtimes import SessionSettings, get_runtime;"
        "s = get_runtime('llama-cpp').load(Artifact(Path(sys.argv[1]), 'gguf', 'F32'),"
        " SessionSettings(threads=1, context=64)); s.forward([1, 2]); s.close()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tiny_gguf)], capture_output=True, check=True
    )
    assert (done.stdout, done.stderr) == (b"", b"")
