from __future__ import annotations

import math

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeadapt.data.encode import Encoded
from edgeadapt.training.score import Score, score_model


@pytest.fixture(scope="module")
def model(base):
    return transformers.AutoModelForCausalLM.from_pretrained(base)


def one_by_one(model, encoded):
    total = 0.0
    with torch.no_grad():
        for example in encoded:
            logits = model(input_ids=torch.tensor([example.ids])).logits[0].double()
            log_probabilities = logits.log_softmax(-1)
            for position, counts in enumerate(example.scored):
                if counts:
                    total -= log_probabilities[position - 1, example.ids[position]].item()
    return total


@st.composite
def datasets(draw):
    lengths = draw(st.lists(st.integers(2, 200), min_size=1, max_size=7))
    random = draw(st.randoms(use_true_random=False))
    return [
        Encoded(
            [random.randrange(320) for _ in range(length)],
            [False, *(random.random() < 0.5 for _ in range(length - 2)), True],
        )
        for length in lengths
    ]


@settings(max_examples=15, deadline=None)
@given(datasets())
def test_batching_and_padding_change_nothing(model, encoded):
    score = score_model(model, encoded)
    assert score.tokens == sum(e.n_scored for e in encoded)
    assert score.nll_sum == pytest.approx(one_by_one(model, encoded), rel=1e-5)


def test_the_training_mode_is_restored(model):
    encoded = [Encoded([1, 2, 3], [False, True, True])]
    for mode in (True, False):
        model.train(mode)
        score_model(model, encoded)
        assert model.training is mode


def test_perplexity_is_finite_in_json():
    assert Score(1, 2, 2 * math.log(10)).perplexity == pytest.approx(10)
    assert math.isfinite(Score(1, 1, 1e6).record()["perplexity"])
