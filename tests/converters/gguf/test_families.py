"""Each family's file, loaded by llama.cpp, gives torch's logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeadapt.converters.base import ConversionRequest
from edgeadapt.converters.gguf.architectures.registry import FAMILIES as CONVERTED
from edgeadapt.converters.gguf.converter import GgufConverter
from edgeadapt.safetensors_io import SafetensorsSource
from edgeadapt.weights import Float32Array
from tests.tiny import FAMILIES, save_model

pytest.importorskip("llama_cpp")

IDS = [3 + (7 * i) % 300 for i in range(100)]  # longer than every sliding window below


def convert(folder: Path, out: Path, quantization: str = "F32") -> Path:
    request = ConversionRequest(SafetensorsSource(folder), folder, quantization, "tiny", threads=2)
    return GgufConverter().convert(request, out).path


def torch_logits(folder: Path, ids: list[int]) -> Float32Array:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0].float().numpy()


def difference(folder: Path, path: Path, ids: list[int] | None = None, room: int = 0) -> float:
    """Largest difference of any logit between llama.cpp and torch."""
    from tests.llama_vocabulary import LlamaCpp

    ids = IDS if ids is None else ids
    engine = LlamaCpp(path, vocab_only=False)
    ours = engine.logits(ids, room)
    engine.close()
    return float(np.abs(ours - torch_logits(folder, ids)).max())


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "long_factor": [1.0 + i for i in range(6)],
    "short_factor": [1.0 + i / 8 for i in range(6)],
    "partial_rotary_factor": 0.75,
    "original_max_position_embeddings": 128,
}
YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in FAMILIES},
    "llama-untied": ("llama", {"tied": False, "attention_bias": True, "mlp_bias": True}),
    "qwen2-tied": ("qwen2", {"tied": True}),
    "qwen2-yarn": ("qwen2", {"rope_parameters": YARN}),
    "granite-tied": ("granite", {"tied": True, "attention_bias": True}),
    "mixtral-8-experts": ("mixtral", {"num_local_experts": 8, "num_experts_per_tok": 3}),
    "gemma2-theta": (
        "gemma2",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 2000.0}},
    ),
    "phi3-longrope": ("phi3", {"rope_parameters": LONGROPE}),
}


def test_every_family_has_a_tiny_model(tmp_path: Path) -> None:
    assert len(CONVERTED) == len(FAMILIES)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_torch(variant: str, tmp_path: Path) -> None:
    family, options = VARIANTS[variant]
    folder = save_model(tmp_path / "m", family, **options)
    path = convert(folder, tmp_path / "m.gguf")
    limit = 2e-3 if family.startswith("gemma") else 1e-3
    assert difference(folder, path) < limit
