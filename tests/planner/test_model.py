"""What planning reads off a model: exact sizes, active weights, experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeadapt.devices import load_profile
from edgeadapt.errors import UnsupportedError
from edgeadapt.export import export, open_model
from edgeadapt.planner import ModelFacts, make_plan, model_facts
from edgeadapt.planner.quality import expected_loss
from edgeadapt.planner.sizes import facts_of
from edgeadapt.weights import Float32Array, TensorInfo
from tests.tiny import save_llama


class Tensors:
    """A source that has shapes alone."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], config: dict[str, Any]) -> None:
        self.shapes, self.config = shapes, config

    def tensors(self) -> dict[str, TensorInfo]:
        return {name: TensorInfo(name, shape, "F16") for name, shape in self.shapes.items()}

    def rows(self, name: str, start: int, stop: int) -> Float32Array:
        return np.zeros((stop - start, *self.shapes[name][1:]), np.float32)


CONFIG = {"num_attention_heads": 4, "hidden_size": 8, "num_hidden_layers": 2}


def test_an_embedding_that_is_only_looked_up_is_not_read() -> None:
    shapes = {"model.embed_tokens.weight": (100, 8), "lm_head.weight": (100, 8), "w": (8, 8)}
    untied = model_facts(Tensors(shapes, CONFIG))
    assert (untied.parameters, untied.active) == (1664, 864)
    del shapes["lm_head.weight"]
    tied = model_facts(Tensors(shapes, CONFIG))
    assert (tied.parameters, tied.active) == (864, 864)


def test_experts_that_sleep_are_not_read() -> None:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (10, 8)}
    shapes |= {f"model.layers.0.mlp.experts.{n}.up_proj.weight": (8, 8) for n in range(8)}
    moe = CONFIG | {"num_experts": 8, "num_experts_per_tok": 2, "tie_word_embeddings": True}
    facts = model_facts(Tensors(shapes, moe))
    assert (facts.parameters, facts.active) == (80 + 512, 80 + 128)


def test_gguf_sizes_are_those_of_the_files(tmp_path: Path) -> None:
    model = open_model(str(save_llama(tmp_path / "base")))
    facts = facts_of(model)
    size, exact = facts.size("gguf", "Q8_0")
    made = export(model, "gguf", "Q8_0", tmp_path / "model.gguf")
    assert exact
    assert abs(size - made.size_bytes) <= 64  # the file's name is part of no tensor
    assert facts.size("onnx", "int4")[1] is False


def test_a_format_that_has_no_place_for_the_model_is_named() -> None:
    def exact_size(format: str, quantization: str) -> int | None:
        if format == "gguf":
            raise UnsupportedError("no such architecture")
        return None

    facts = ModelFacts(10**8, 10**8, 1000, exact_size=exact_size)
    plan = make_plan(load_profile("raspberry-pi-5"), facts)
    assert plan.refused == {"gguf": "no such architecture"}
    assert {c.format for c in plan.found} == {"onnx"}


@pytest.mark.parametrize("parameters", [135_000_000, 8_000_000_000])
def test_fewer_bits_lose_more(parameters: int) -> None:
    names = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0")
    losses = [expected_loss("gguf", name, parameters) for name in names]
    middles = [loss.middle for loss in losses if loss]
    assert middles == sorted(middles)
    assert expected_loss("gguf", "Q9_X", parameters) is None
