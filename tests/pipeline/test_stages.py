"""What a stage's result depends on is in its key."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgeadapt.fidelity import compare
from edgeadapt.pipeline.inputs import adapted
from edgeadapt.safetensors_io import write_safetensors
from edgeadapt.weights import TensorInfo


def test_an_adapter_is_known_by_its_config_too(tmp_path: Path) -> None:
    info = TensorInfo("a", (2, 2), "F32")
    write_safetensors(
        tmp_path / "adapter_model.safetensors",
        {"a": info},
        lambda name, start, stop: np.ones((stop - start, 2), np.float32),
    )
    found = []
    for alpha in (8, 16):
        config = json.dumps({"peft_type": "LORA", "lora_alpha": alpha})
        (tmp_path / "adapter_config.json").write_text(config)
        found.append(adapted(tmp_path))
    assert found[0].sha256 == found[1].sha256
    assert found[0].identity != found[1].identity


def test_another_build_of_an_engine_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llama_cpp")
    keys = []
    for features in ("AVX2", "AVX2 AVX512"):
        monkeypatch.setattr(compare, "build_record", lambda f=features: {"features": f})
        keys.append(compare.engine_identity("llama-cpp"))
    assert keys[0]["version"] == keys[1]["version"]
    assert keys[0] != keys[1]
