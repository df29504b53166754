"""A warm prompt on the built-in model, as a user makes and uses it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgeadapt.fidelity.metrics import kl_divergence, log_softmax
from edgeadapt.jobs import open_here
from edgeadapt.warm.prompt import read_warm
from edgeadapt.warm.start import start_after

pytestmark = pytest.mark.e2e
pytest.importorskip("llama_cpp")

PROMPT = Path(__file__).parents[2] / "benchmarks/data/system_prompt.txt"
QUESTION = "The light is red and shows 3. What shall I do?"


def edgeadapt(*arguments: object, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgeadapt", *map(str, arguments)],
        input=given, capture_output=True, text=True, timeout=900,
    )  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("warm") / "m.gguf"
    done = edgeadapt(
        "export", "--base", "default", "--format", "gguf", "--quant", "Q4_0", "--out", out,
        "--warm-prompt", PROMPT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "--warm" in done.stdout.splitlines()[-1]
    return out


def test_what_it_says_is_what_it_says_without(model: Path) -> None:
    """The same greedy answer where the batches are the same, and nearly the same logits in one."""
    warm = model.with_name("m.warm.json")
    lines = f"{QUESTION}\n/reset\n{QUESTION}\n"
    common = ("chat", model, "--json", "--max-tokens", "48", "--threads", "2")
    done = edgeadapt(*common, "--warm", warm, given=lines)
    assert done.returncode == 0, done.stderr
    first, again = (turn["assistant"] for turn in json.loads(done.stdout)["turns"])
    assert first == again and first.strip()

    prompt = read_warm(warm)
    known = list(prompt.ids)
    assert 250 < len(known) < 400
    session = open_here(model, context=2048, threads=2)
    try:
        messages = [*prompt.messages, {"role": "user", "content": QUESTION}]
        ids = session.encode(session.render(messages))
        assert ids[: len(known)] == known
        session.reset()
        for part in (known, ids[len(known) : -1]):
            session.forward(part)
        tokens = list(session.generate(ids[-1:], max_tokens=48))
        text = b"".join(map(session.token_bytes, tokens)).decode("utf-8", "replace")
        assert text == first

        def logits() -> np.ndarray:
            return log_softmax(session.last_logits()[None])

        start = start_after(session, warm, model)
        assert start.origin == "shipped"
        start.begin()
        session.forward(ids[len(known) :])
        found = logits()
        session.reset()
        session.forward(ids)
        whole = logits()
        session.reset()
        session.forward(ids[len(known) :])  # as if the state had been dropped
        dropped = logits()
    finally:
        session.close()
    assert kl_divergence(whole, found).max() < 0.05
    assert kl_divergence(whole, dropped).max() > 0.5


def test_bench_tells_both_times(model: Path) -> None:
    done = edgeadapt(
        "bench", model, "--warm", model.with_name("m.warm.json"), "--json", "--threads", 2,
        "--prompt-tokens", 16, "--decode-tokens", 4, "--repetitions", 2,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)[0]["warm"]
    assert found["state"] == "shipped"
    assert found["ttft_s"]["count"] == found["ttft_without_s"]["count"] == 2


def test_another_quantization_is_refused(model: Path) -> None:
    other = model.with_name("q8.gguf")
    done = edgeadapt(
        "export", "--base", "default", "--format", "gguf", "--quant", "Q8_0", "--no-parity",
        "--out", other,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    warm = model.with_name("m.warm.json")
    refused = edgeadapt("chat", other, "--warm", warm, "--prompt", QUESTION)
    assert refused.returncode == 2
    assert "for gguf Q4_0, and this one is gguf Q8_0" in refused.stderr
    assert refused.stderr.count("\n") == 1
