"""What a warm prompt should save: the seconds of its own tokens, and nothing else."""

from __future__ import annotations

import pytest

from edgeadapt.devices import load_profile
from edgeadapt.planner import ModelFacts
from edgeadapt.planner.warm import QUESTION_TOKENS, FirstToken, first_token

MODEL = ModelFacts(parameters=135_000_000, active=135_000_000, kv_bytes_per_token=23_040)
SIZE = 92e6


def told(device: str, runtime: str, tokens: int) -> FirstToken:
    profile = load_profile(device)
    choice = next(r for r in profile.runtimes if r.name == runtime)
    quantization = choice.quantizations[0].name
    return first_token(profile, MODEL, choice, quantization, size_bytes=SIZE, tokens=tokens)


@pytest.mark.parametrize("device", ["raspberry-pi-5", "laptop-x86", "pixel-8a", "meta-quest-3"])
def test_the_prompts_tokens_are_saved(device: str) -> None:
    few, many = told(device, "llama-cpp", 100), told(device, "llama-cpp", 1000)
    assert few.warm is not None and few.warm == many.warm
    for one, tokens in ((few, 100), (many, 1000)):
        assert 0 < one.warm.low < one.without.low < one.without.high
        # as fast for each token, but for the weights, which are read once for all of them
        each = (tokens + QUESTION_TOKENS) / QUESTION_TOKENS
        assert 1 < one.without.high / one.warm.high <= each
    assert many.without.high / few.without.high == pytest.approx(1032 / 132, rel=0.25)


def test_the_state_is_as_wide_as_the_cache() -> None:
    assert told("raspberry-pi-5", "llama-cpp", 300).state_bytes == 300 * 23_040
    onnx = told("laptop-x86", "ort-genai", 300)
    assert onnx.state_bytes == 2 * 300 * 23_040
    assert onnx.warm is None
    assert onnx.record()["ttft_s"] is None
    assert "ort-genai cannot start from a state" in str(onnx)


def test_seconds_are_readable() -> None:
    text = str(told("raspberry-pi-5", "llama-cpp", 300))
    assert "after this prompt and 32 tokens more" in text and "with its state" in text
