"""Adapter configs that say nonsense are refused in a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgeadapt.adapters.spec import read_spec
from edgeadapt.errors import CorruptFileError


def adapter(folder: Path, **config: Any) -> Path:
    (folder / "adapter_model.safetensors").write_bytes(b"")
    plain = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}
    (folder / "adapter_config.json").write_text(json.dumps(plain | config))
    return folder


@pytest.mark.parametrize(
    "config",
    [
        {"r": [1]},
        {"r": float("inf")},
        {"lora_alpha": "much"},
        {"rank_pattern": {"q_proj": "abc"}},
        {"rank_pattern": [1]},
        {"alpha_pattern": {"q_proj": "abc"}},
        {"trainable_token_indices": {"embed_tokens": 5}},
        {"peft_type": "IA3", "feedforward_modules": 7},
    ],
    ids=str,
)
def test_values_of_the_wrong_kind(config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CorruptFileError, match="wrong kind"):
        read_spec(adapter(tmp_path, **config))


def test_a_record_that_is_no_object(tmp_path: Path) -> None:
    (tmp_path / "edgeadapt.json").write_text("[]")
    with pytest.raises(CorruptFileError, match="JSON object"):
        read_spec(adapter(tmp_path))


def test_a_base_that_is_no_text_is_unknown(tmp_path: Path) -> None:
    assert read_spec(adapter(tmp_path, base_model_name_or_path=["x"])).base_model is None
