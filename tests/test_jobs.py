"""Likelihoods and answers from the child process equal those computed here."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from edgeadapt.errors import InputError, UnsupportedError
from edgeadapt.jobs import Scored, Text, available_threads, open_here, sample, score

pytest.importorskip("llama_cpp")

SENTENCE = "The quick brown fox jumps over the lazy dog."


def torch_nll(model_folder: Path, ids: list[int]) -> np.ndarray:
    """Per-token negative log likelihood, of every token but the first."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    losses = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none")
    return losses.double().numpy()


def test_scores_equal_those_of_torch(tiny_gguf: Path, tiny_model: Path) -> None:
    session = open_here(tiny_gguf, context=128, threads=1)
    prompt, completion = "def main", "(argument: int) -> str: return"
    ids = session.encode(SENTENCE * 3)
    head, tail = session.encode(prompt), session.encode(completion)
    session.close()
    some = [position % 3 == 0 for position in range(len(ids))]
    seen: list[float] = []
    result = score(
        tiny_gguf,
        [Scored(ids, [True] * len(ids)), Scored(ids, some), Text(prompt, completion)],
        exact=True,
        on_progress=seen.append,
    )
    every = torch_nll(tiny_model, ids)
    both = torch_nll(tiny_model, head + tail)
    expected = [every.sum(), every[np.flatnonzero(some)[1:] - 1].sum(), both[len(head) - 1 :].sum()]
    np.testing.assert_allclose(result.nll, expected, rtol=1e-5)
    assert result.tokens == (len(ids) - 1, sum(some) - 1, len(tail))
    assert result.perplexity == pytest.approx(
        math.exp(sum(expected) / (len(ids) - 1 + sum(some) - 1 + len(tail))), rel=1e-5
    )
    assert sum(seen) == 3


def test_what_sequences_begin_with_may_be_run_once(tiny_gguf: Path) -> None:
    session = open_here(tiny_gguf, context=128, threads=1)
    ids = session.encode(SENTENCE * 3)
    session.close()
    ends = [session_end + ids[:9] for session_end in ([5], [6, 7], [8], [9, 10, 11])]
    sequences = [
        *(Scored(ids + end, [False] * (len(ids) + 1) + [True] * (len(end) - 1)) for end in ends),
        Scored(ids, [i > 20 for i in range(len(ids))]),  # shorter, and counted from within
        Scored([7, 5], [False, False]),
        Scored(ids, [i > 0 for i in range(len(ids))]),  # counted from the second token on
        Scored([5, *ids], [False, *(i > 30 for i in range(len(ids)))]),  # nothing alike
    ]
    apart = score(tiny_gguf, sequences, exact=True)
    kept = score(tiny_gguf, sequences, exact=True, keep_beginnings=True)
    np.testing.assert_allclose(kept.nll, apart.nll, rtol=1e-5)
    assert kept.tokens == apart.tokens


def test_a_beginning_that_is_kept_is_not_run_again(tiny_gguf: Path) -> None:
    session = open_here(tiny_gguf, context=128, threads=1)
    ids = session.encode(SENTENCE)
    first = session.logits_at(ids, [len(ids) - 1])
    # the cache holds these tokens, so what is said of them is not looked at
    again = session.logits_at([5] * (len(ids) - 1) + ids[-1:], [len(ids) - 1], kept=len(ids) - 1)
    np.testing.assert_allclose(again, first, atol=1e-4)
    assert session.position == len(ids)
    more = session.logits_at([*ids, 7], [len(ids)], kept=len(ids) + 5)  # more than it holds
    np.testing.assert_allclose(more, session.logits_at([*ids, 7], [len(ids)]), atol=1e-4)
    session.close()


def test_sliding_windows_see_the_beginning_that_was_kept(tmp_path: Path) -> None:
    from edgeadapt.converters.base import ConversionRequest
    from edgeadapt.converters.gguf.converter import GgufConverter
    from edgeadapt.safetensors_io import SafetensorsSource
    from tests.tiny import save_model

    folder = save_model(
        tmp_path / "model", "gemma2", sliding_window=8, max_position_embeddings=2048
    )
    request = ConversionRequest(SafetensorsSource(folder), folder, "F32", "tiny", threads=1)
    path = GgufConverter().convert(request, tmp_path / "tiny.gguf").path
    ids = [5 + i % 90 for i in range(240)]
    sequences = [
        Scored([*ids[:length], *end], [False] * length + [True] * len(end))
        for length, end in ((240, [7, 8, 9]), (70, [17, 18, 19]), (200, [9, 8]))
    ]
    apart = score(path, sequences, exact=True)
    kept = score(path, sequences, exact=True, keep_beginnings=True)
    np.testing.assert_allclose(kept.nll, apart.nll, rtol=1e-5)


def test_nothing_to_score_is_not_a_number(tiny_gguf: Path) -> None:
    result = score(tiny_gguf, [Scored([5, 6], [False, False]), Scored([5], [True])])
    assert result.tokens == (0, 0)
    assert math.isnan(result.perplexity)


def test_a_mask_that_does_not_fit_is_refused(tiny_gguf: Path) -> None:
    with pytest.raises(InputError, match="sequence 1 has 2 ids and 1 flags"):
        score(tiny_gguf, [Scored([1], [True]), Scored([1, 2], [True])])


def test_samples_are_greedy_answers_under_the_template(tiny_gguf: Path) -> None:
    question = [{"role": "user", "content": SENTENCE}]
    answers = sample(tiny_gguf, [question, question], max_tokens=9, context=128)
    session = open_here(tiny_gguf, context=128, threads=1)
    tokens = list(session.generate(session.encode(session.render(question)), max_tokens=9))
    text = b"".join(map(session.token_bytes, tokens)).decode("utf-8", "replace")
    session.close()
    assert answers[0].text == text.strip()
    assert answers[0] == answers[1]
    assert answers[0].tokens == len(tokens)
    assert answers[0].finished == (len(tokens) < 9)


def test_answers_end_where_the_model_has_no_more_positions(tiny_model: Path) -> None:
    question = [{"role": "user", "content": SENTENCE}]
    (answer,) = sample(tiny_model, [question], max_tokens=1000, context=2048)
    session = open_here(tiny_model, context=2048, threads=1)
    assert session.capacity == 256
    assert answer.tokens == 256 - len(session.encode(session.render(question)))
    assert not answer.finished
    session.close()
    with pytest.raises(InputError, match="do not fit a context of 256"):
        sample(tiny_model, [[{"role": "user", "content": SENTENCE * 40}]], max_tokens=9)


def test_a_live_adapter_needs_torch(tiny_gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"llama.cpp cannot use the adapter .* with this model"):
        score(tiny_gguf, [Scored([1, 2], [True, True])], adapter=tmp_path)


def test_an_artifact_of_no_known_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises((InputError, UnsupportedError), match="notes"):
        (tmp_path / "notes").mkdir()
        score(tmp_path / "notes", [])


def test_at_least_one_thread() -> None:
    assert available_threads() >= 1
