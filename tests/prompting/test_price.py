"""What added tokens cost on a device."""

from __future__ import annotations

import pytest

from edgeadapt.devices import load_profile
from edgeadapt.planner import ModelFacts
from edgeadapt.prompting.lengths import PromptLengths
from edgeadapt.prompting.price import PromptPrice, prompt_price

KV = 30 * 2 * 3 * 64 * 2
SMOLLM2 = ModelFacts(134_515_008, 134_515_008, KV)


def price(lengths: PromptLengths, format: str = "gguf", device: str = "laptop-x86") -> PromptPrice:
    return prompt_price(
        load_profile(device), SMOLLM2, lengths, runtime="llama-cpp", format=format,
        quantization="Q8_0", size_bytes=145e6,
    )  # fmt: skip


def test_memory_is_that_of_keys_and_values() -> None:
    lengths = PromptLengths(10, 40, 100.5, 130, 90, 300)
    found = price(lengths)
    assert (found.kv_bytes_mean, found.kv_bytes_max) == (100.5 * KV, 130 * KV)
    assert price(lengths, "onnx").kv_bytes_max == 2 * 130 * KV  # float32


def test_what_is_shared_is_paid_once() -> None:
    found = price(PromptLengths(10, 40, 100, 130, 90, 300))
    for bound in ("low", "median", "high"):
        once, each = getattr(found.once_s, bound), getattr(found.each_s, bound)
        assert once == pytest.approx(9 * each)
        assert once + each == pytest.approx(getattr(found.prefill_s, bound))
    assert 0 < found.prefill_s.low < found.prefill_s.median < found.prefill_s.high


def test_no_tokens_cost_nothing_and_a_slower_device_more() -> None:
    nothing = price(PromptLengths(10, 40, 0, 0, 0, 60)).record()
    assert nothing["prefill_s"] == {"low": 0, "median": 0, "high": 0}
    assert nothing["kv_bytes"] == {"mean": 0, "max": 0}
    lengths = PromptLengths(10, 40, 100, 130, 90, 300)
    slow = price(lengths, device="raspberry-pi-4")
    assert slow.prefill_s.median > price(lengths).prefill_s.median
