"""A bottleneck beside a feed-forward block is the wider block that it becomes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from edgeadapt.adapters import AdapterChoice, merged_source, stacked_source
from edgeadapt.adapters.bottleneck import filling_width, padded_width
from edgeadapt.adapters.spec import CONFIG, WEIGHTS
from edgeadapt.calibration.activations import load_model
from edgeadapt.errors import AdapterError, UnsupportedError
from edgeadapt.export import export, open_model
from edgeadapt.runtimes import SessionSettings, get_runtime
from edgeadapt.safetensors_io import SafetensorsSource
from edgeadapt.training import bottleneck, inserted
from edgeadapt.weights import read_tensor, row_chunks
from tests.tiny import save_llama, save_model

IDS = np.random.default_rng(0).integers(3, 320, 64).tolist()


def save_bottleneck(base: Path, out: Path, *, width: int | None = 24, seed: int = 1) -> Path:
    """Random in all its parts, as after training."""
    model = AutoModelForCausalLM.from_pretrained(base)
    bottleneck.attach(model, base, width, seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    inserted.save(model, out, base="tiny")
    return out


def logits(model: Any) -> np.ndarray:
    with torch.no_grad():
        result: np.ndarray = model(input_ids=torch.tensor([IDS])).logits[0].double().numpy()
    return result


def live(base: Path, adapter: Path) -> np.ndarray:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return logits(bottleneck.load(model, base, adapter))


FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"mlp_bias": True},
    "mistral": {}, "qwen2": {}, "qwen3": {}, "gemma2": {}, "gemma3": {}, "phi3": {},
    "granite": {}, "olmo2": {}, "smollm3": {},
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_folded_is_live_in_torch(family: str, tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", family, **FAMILIES[family])
    adapter = save_bottleneck(base, tmp_path / "adapter")
    source = merged_source(SafetensorsSource(base), adapter)
    assert source.config["intermediate_size"] == 256  # 96 and 24, and zeros
    plain = logits(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32))
    expected = live(base, adapter)
    assert abs(expected - plain).max() > 0.1
    assert abs(logits(load_model(source)) - expected).max() < 1e-4


def test_folded_is_live_on_both_engines(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    pytest.importorskip("onnxruntime")
    base = save_llama(tmp_path / "base", hidden=256)
    adapter = save_bottleneck(base, tmp_path / "adapter", width=None)
    expected = live(base, adapter)
    for format, runtime, quantization, name in (
        ("gguf", "llama-cpp", "F32", "m.gguf"), ("onnx", "onnxruntime", "fp32", "m"),
    ):  # fmt: skip
        model = open_model(str(base), adapter)
        made = export(model, format, quantization, tmp_path / name)
        settings = SessionSettings(threads=1, context=128, exact=True)
        session = get_runtime(runtime).load(made, settings)
        try:
            assert abs(session.all_logits(IDS) - expected).max() < 1e-3, format
        finally:
            session.close()
        assert made.lineage["adapter"]["method"] == "adapter"


def test_rows_may_be_read_in_any_pieces(tmp_path: Path) -> None:
    for family in ("llama", "phi3"):
        base = save_model(tmp_path / family, family)
        adapter = save_bottleneck(base, tmp_path / f"{family}-adapter")
        source = merged_source(SafetensorsSource(base), adapter)
        for name, info in source.tensors().items():
            whole = read_tensor(source, name)
            assert whole.shape == info.shape
            pieces = [source.rows(name, *span) for span in row_chunks(info, 1000)]
            np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_only_our_own_modules_count_as_trained(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(save_llama(tmp_path / "base"))
    model.model.layers[0].mlp.add_module("adapter", torch.nn.Linear(2, 2))
    assert inserted.trained_tensors(model) == {}


def test_zeros_fill_up_to_a_super_block() -> None:
    assert [filling_width(n) for n in (1536, 96, 250)] == [256, 160, 6]
    assert [padded_width(1536, n) for n in (1, 64, 256, 257)] == [1792, 1792, 1792, 2048]


def test_what_is_added_keeps_to_super_blocks_of_its_own(tmp_path: Path) -> None:
    """Or the base's columns would be quantized with the scales of the bottleneck's."""
    base = save_llama(tmp_path / "base", intermediate=512)
    source = SafetensorsSource(base)
    wide = merged_source(source, save_bottleneck(base, tmp_path / "adapter", width=64))
    name = "model.layers.0.mlp.down_proj.weight"
    rows = read_tensor(wide, name)
    np.testing.assert_array_equal(rows[:, :512], read_tensor(source, name))
    assert rows[:, 512:576].any()
    assert not rows[:, 576:].any()


def test_it_stacks_with_other_adapters(tmp_path: Path) -> None:
    base = save_llama(tmp_path / "base")
    one = save_bottleneck(base, tmp_path / "one")
    two = save_bottleneck(base, tmp_path / "two", seed=2)
    source = stacked_source(SafetensorsSource(base), [AdapterChoice(one), AdapterChoice(two)])
    model = bottleneck.load(AutoModelForCausalLM.from_pretrained(base), base, one)
    for name, block in model.named_modules():
        if name.endswith(".mlp"):
            block.register_forward_hook(_second(two, name))
    assert abs(logits(load_model(source)) - logits(model)).max() < 1e-4


def _second(adapter: Path, name: str) -> Any:
    weights = load_file(adapter / WEIGHTS)

    def add(block: Any, inputs: Any, output: Any) -> Any:
        gate, up, down = (
            weights[f"{name}.adapter.{part}.weight"] for part in ("gate", "up", "down")
        )
        hidden = block.act_fn(inputs[0] @ gate.T) * (inputs[0] @ up.T)
        return output + hidden @ down.T

    return add


def test_misfits_are_named(tmp_path: Path) -> None:
    base = save_llama(tmp_path / "base")
    adapter = save_bottleneck(base, tmp_path / "adapter")
    larger = SafetensorsSource(save_llama(tmp_path / "larger", layers=3))
    with pytest.raises(AdapterError, match=r"no complete bottleneck for 'model.layers.2.mlp'"):
        merged_source(larger, adapter)
    smaller = SafetensorsSource(save_llama(tmp_path / "smaller", layers=1))
    with pytest.raises(AdapterError, match=r"widens 'model.layers.1.mlp', which the base"):
        merged_source(smaller, adapter)
    thinner = SafetensorsSource(save_llama(tmp_path / "thinner", hidden=32))
    with pytest.raises(AdapterError, match=r"has shape \(24, 64\), but \(24, 32\)"):
        merged_source(thinner, adapter)
    absurd = shutil.copytree(adapter, tmp_path / "absurd")
    for width in (0, -1, 10**12):  # for which memory would be asked
        config = json.loads((adapter / CONFIG).read_text()) | {"r": width}
        (absurd / CONFIG).write_text(json.dumps(config))
        with pytest.raises(AdapterError, match="do not fit the base"):
            live(base, absurd)
        with pytest.raises(AdapterError, match=r"has shape \(24, 64\)"):
            merged_source(SafetensorsSource(base), absurd)
    experts = SafetensorsSource(save_model(tmp_path / "experts", "mixtral"))
    with pytest.raises(UnsupportedError, match="several experts"):
        merged_source(experts, adapter)
    damaged = shutil.copytree(adapter, tmp_path / "damaged")
    weights = load_file(adapter / WEIGHTS)
    name = next(iter(weights))
    save_file(weights | {name: torch.full_like(weights[name], float("nan"))}, damaged / WEIGHTS)
    source = merged_source(SafetensorsSource(base), damaged)
    with pytest.raises(AdapterError, match="NaN or infinite"):
        for tensor in source.tensors():
            read_tensor(source, tensor)
