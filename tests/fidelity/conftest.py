"""A tiny base, an adapter that changes what it says, and held-out examples."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from edgeadapt.artifact import Artifact
from edgeadapt.data.encode import Encoded, encode_dataset
from edgeadapt.export import export, open_model
from edgeadapt.fidelity.evaluate import Yardstick, prepare
from edgeadapt.fidelity.models import reference_models
from edgeadapt.tokenizer import ModelTokenizer
from tests.tiny import save_llama

HIDDEN, LAYERS, RANK = 64, 2, 4


def save_lora(folder: Path, *, seed: int = 0, size: float = 0.15, alpha: float = 8.0) -> Path:
    """A LoRA of rank 4 on the output and down projections of the tiny model."""
    random = np.random.default_rng(seed)
    tensors = {}
    for layer in range(LAYERS):
        for module, inputs in (("self_attn.o_proj", HIDDEN), ("mlp.down_proj", 96)):
            name = f"base_model.model.model.layers.{layer}.{module}"
            for part, shape in (("lora_A", (RANK, inputs)), ("lora_B", (HIDDEN, RANK))):
                values = random.normal(0, size, shape).astype(np.float32)
                tensors[f"{name}.{part}.weight"] = values
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "r": RANK, "lora_alpha": alpha, "base_model_name_or_path": "tiny",
        "target_modules": ["o_proj", "down_proj"], "task_type": "CAUSAL_LM",
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@dataclass(frozen=True)
class World:
    """Everything that an evaluation needs."""

    base: Path
    adapter: Path
    data: Path
    encoded: list[Encoded]
    yardstick: Yardstick
    folder: Path

    def artifact(
        self, name: str, quantization: str, adapter: Path | None, **model: Path
    ) -> Artifact:
        """Export under a new name."""
        opened = open_model(str(model.get("base", self.base)), adapter)
        return export(opened, "gguf", quantization, self.folder / f"{name}.gguf")

    def adapter_with(self, name: str, **config: object) -> Path:
        """A copy of the adapter with another configuration."""
        folder = self.folder / name
        folder.mkdir()
        weights = (self.adapter / "adapter_model.safetensors").read_bytes()
        (folder / "adapter_model.safetensors").write_bytes(weights)
        changed = json.loads((self.adapter / "adapter_config.json").read_text()) | config
        (folder / "adapter_config.json").write_text(json.dumps(changed))
        return folder


@pytest.fixture(scope="package")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The base, the adapter, held-out examples and their references, in a cache of their own."""
    pytest.importorskip("llama_cpp")
    folder = tmp_path_factory.mktemp("world")
    base = save_llama(folder / "base", hidden=HIDDEN, layers=LAYERS)
    adapter = save_lora(folder / "adapter")
    rows = [
        {"prompt": f"What is {i}?", "completion": f"The quick brown fox {i} jumps over naïve dogs."}
        for i in range(10)
    ]
    data = folder / "held.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    encoded = encode_dataset(data, ModelTokenizer.from_folder(base), 128)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEADAPT_CACHE", str(folder / "cache"))
        yardstick = prepare(reference_models(base, [adapter]), encoded, threads=1)
        yield World(base, adapter, data, encoded, yardstick, folder)
