"""ONNX of the built-in model, and a tiny checkpoint of every family that the export admits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeadapt.artifact import open_artifact
from edgeadapt.base_model import import_base
from edgeadapt.converters.onnx.converter import OnnxConverter
from edgeadapt.runtimes import SessionSettings, get_runtime
from tests.onnx_folders import exported, request
from tests.tiny import save_tokenizer

pytestmark = pytest.mark.e2e

ENGINES = ("ort-genai", "onnxruntime")
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return import_base("default", tmp_path_factory.mktemp("base") / "model")


@pytest.mark.parametrize("engine", ENGINES)
def test_int4_answers_and_stops(base: Path, engine: str) -> None:
    artifact = exported(base, "int4")
    session = get_runtime(engine).load(artifact, SessionSettings(threads=2, context=512))
    ids = session.encode(session.render(QUESTION))
    answer = list(session.generate(ids, max_tokens=100))
    text = b"".join(session.token_bytes(token) for token in answer).decode()
    assert "Paris" in text
    assert len(answer) < 100, f"did not stop: {text}"
    assert session.position == len(ids) + len(answer)


def test_int4_is_a_quarter_of_float32(base: Path) -> None:
    assert exported(base, "int4").size_bytes * 4 < exported(base, "fp32").size_bytes


@pytest.mark.parametrize("engine", ENGINES)
def test_fp32_equals_torch(base: Path, engine: str) -> None:
    settings = SessionSettings(threads=2, context=512)
    reference = get_runtime("torch").load(open_artifact(base), settings)
    ids = reference.encode(reference.render(QUESTION) + (np.ndarray.__doc__ or ""))[:256]
    expected = reference.all_logits(ids)
    session = get_runtime(engine).load(exported(base, "fp32"), settings)
    assert np.abs(session.all_logits(ids) - expected).max() < 1e-3
    session.reset()
    for start, stop in ((0, 200), (200, 201), (201, len(ids))):
        session.forward(ids[start:stop])
        assert np.abs(session.last_logits() - expected[stop - 1]).max() < 1e-3


def test_genai_tokenizer_gives_the_same_ids(base: Path) -> None:
    """Apps that use onnxruntime-genai's own tokenizer see what edgeadapt measured."""
    og = pytest.importorskip("onnxruntime_genai")
    artifact = exported(base, "int4")
    session = get_runtime("onnxruntime").load(artifact, SessionSettings(threads=1, context=64))
    theirs = og.Tokenizer(og.Model(str(artifact.path)))
    for text in (session.render(QUESTION), "def f(x):\n\treturn x + 12345", "Grüße, 日本語 🙂"):
        assert theirs.encode(text).tolist() == session.encode(text)


COMMON = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip


def families() -> dict[str, tuple[str, dict[str, Any]]]:
    """Config class and what makes the family different, sliding windows shorter than the text."""
    window = {"head_dim": 16, "sliding_window": 32}
    llama3 = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64, "rope_theta": 5e5,
    }  # fmt: skip
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    return {
        "llama3": ("LlamaConfig", {"rope_parameters": llama3, "attention_bias": True}),
        "mistral": ("MistralConfig", window),
        "qwen2": ("Qwen2Config", {"use_sliding_window": True, "max_window_layers": 1} | window),
        "qwen3": ("Qwen3Config", {"head_dim": 16}),
        "gemma": ("GemmaConfig", {"head_dim": 16}),
        "gemma2": ("Gemma2Config", {"query_pre_attn_scalar": 16} | window),
        "gemma3": (
            "Gemma3TextConfig",
            {"query_pre_attn_scalar": 16, "layer_types": kinds} | window,
        ),
        "phi3": ("Phi3Config", {"original_max_position_embeddings": 256, "sliding_window": 32}),
        "granite": ("GraniteConfig", {"logits_scaling": 3.0, "residual_multiplier": 0.5}),
        "smollm3": ("SmolLM3Config", {}),
    }


def save_family(folder: Path, name: str) -> Path:
    """A random model of one family, its norms and biases not at their neutral values."""
    import torch
    import transformers

    kind, different = families()[name]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**(COMMON | different))
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for tensor_name, parameter in model.named_parameters():
            if "norm" in tensor_name or "bias" in tensor_name:
                parameter.uniform_(0.2, 1.2)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.mark.parametrize("name", families())
def test_every_family_equals_torch(tmp_path: Path, name: str) -> None:
    model = save_family(tmp_path / "model", name)
    artifact = OnnxConverter().convert(request(model, "fp32"), tmp_path / "onnx")
    ids = np.random.default_rng(0).integers(3, 320, 150).tolist()
    settings = SessionSettings(threads=1, context=256)
    expected = get_runtime("torch").load(open_artifact(model), settings).all_logits(ids)
    for engine in ("onnxruntime", "ort-genai"):
        session = get_runtime(engine).load(artifact, settings)
        assert np.abs(session.all_logits(ids) - expected).max() < 1e-4
        session.reset()
        for start, stop in ((0, 70), (70, 71), (71, 72), (72, 150)):
            session.forward(ids[start:stop])
            assert np.abs(session.last_logits() - expected[stop - 1]).max() < 1e-4
        session.close()
