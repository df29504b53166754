"""Bottlenecks behind the blocks: the live torch model, and the graph that has them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from edgeadapt.adapters import merged_source
from edgeadapt.adapters.sequential import (
    FORMS,
    MODULE,
    WithBottlenecks,
    default_width,
    projections,
)
from edgeadapt.adapters.spec import CONFIG, WEIGHTS
from edgeadapt.calibration.activations import load_model
from edgeadapt.cli import cli
from edgeadapt.comparison.recipe import MethodWish
from edgeadapt.errors import AdapterError, UnsupportedError
from edgeadapt.export import export, open_model, plan_export
from edgeadapt.pipeline.run import model_to_be, plan_targets
from edgeadapt.recipe import parse_recipe
from edgeadapt.runtimes import SessionSettings, get_runtime
from edgeadapt.safetensors_io import SafetensorsSource
from edgeadapt.training import inserted, sequential
from edgeadapt.training.methods import with_inserted
from edgeadapt.training.settings import TrainSettings
from edgeadapt.weights import read_tensor
from tests.adapters.test_bottleneck import IDS, logits
from tests.tiny import ONNX_ONLY, save_llama, save_model

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", *ONNX_ONLY]


def save_sequential(
    base: Path, out: Path, name: str = "HOULSBY", *, width: int | None = 24, seed: int = 1
) -> Path:
    """Random in all its parts, as after training."""
    model = AutoModelForCausalLM.from_pretrained(base)
    sequential.attach(model, base, name, width, seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    inserted.save(model, out, base="tiny")
    return out


def live(base: Path, adapter: Path) -> np.ndarray:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return logits(sequential.load(model, base, adapter))


def graph_logits(base: Path, adapter: Path, quantization: str, out: Path) -> np.ndarray:
    made = export(open_model(str(base), adapter), "onnx", quantization, out)
    session = get_runtime("onnxruntime").load(
        made, SessionSettings(threads=1, context=128, exact=True)
    )
    try:
        return np.asarray(session.all_logits(IDS), np.float64)
    finally:
        session.close()


@pytest.mark.parametrize("name", FORMS)
def test_it_is_what_the_papers_say(name: str, tmp_path: Path) -> None:
    """By the formula, at one projection."""
    base = save_llama(tmp_path / "base")
    adapter = save_sequential(base, tmp_path / "adapter", name)
    weights = load_file(adapter / WEIGHTS)
    prefix = f"model.layers.1.mlp.down_proj.{MODULE}"
    down, up = (weights[f"{prefix}.{part}.weight"] for part in ("down", "up"))
    b, c = (weights[f"{prefix}.{part}.bias"] for part in ("down", "up"))
    plain = AutoModelForCausalLM.from_pretrained(base)
    model = sequential.load(AutoModelForCausalLM.from_pretrained(base), base, adapter)
    given = torch.randn(3, plain.config.intermediate_size)
    y = plain.model.layers[1].mlp.down_proj(given)
    act = torch.nn.functional.gelu if name == "HOULSBY" else torch.relu
    expected = y + act(y @ down.T + b) @ up.T + c
    assert torch.allclose(model.model.layers[1].mlp.down_proj(given), expected, atol=1e-5)
    assert len(weights) == 2 * 4 * len(FORMS[name].places)
    config = json.loads((adapter / CONFIG).read_text())
    assert (config["peft_type"], config["r"]) == (name, 24)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_graph_has_them(family: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    base = save_model(tmp_path / "base", family)
    for name in FORMS:
        adapter = save_sequential(base, tmp_path / name, name)
        expected = live(base, adapter)
        plain = logits(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32))
        assert abs(expected - plain).max() > 0.1
        source = merged_source(SafetensorsSource(base), adapter)
        assert abs(logits(load_model(source)) - expected).max() < 1e-4
        found = graph_logits(base, adapter, "fp32", tmp_path / f"{name}.onnx")
        assert abs(found - expected).max() < 1e-3


@pytest.mark.parametrize("width", [24, 1, 20, 64])
@pytest.mark.parametrize("quantization", ["int8", "int4", "fp16"])
def test_quantized_graphs_lose_no_more_than_the_base_does(
    quantization: str, width: int, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    base = save_llama(tmp_path / "base")
    adapter = save_sequential(base, tmp_path / "adapter", width=width)
    plain = logits(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32))
    expected = live(base, adapter)
    made = export(open_model(str(base)), "onnx", quantization, tmp_path / "plain")
    session = get_runtime("onnxruntime").load(
        made, SessionSettings(threads=1, context=128, exact=True)
    )
    lost = abs(np.asarray(session.all_logits(IDS), np.float64) - plain).max()
    session.close()
    found = graph_logits(base, adapter, quantization, tmp_path / "out")
    assert abs(found - expected).max() < 2 * lost
    assert abs(found - plain).max() > abs(expected - plain).max() / 2


def test_sizes_are_known_before(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    base = save_llama(tmp_path / "base")
    adapter = save_sequential(base, tmp_path / "adapter")
    for quantization in ("fp32", "int4"):
        out = tmp_path / quantization
        planned = plan_export(open_model(str(base), adapter), "onnx", quantization, out)
        export(open_model(str(base), adapter), "onnx", quantization, out)
        weights = sum((out / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))
        assert planned.output == weights


@given(st.integers(16, 8192))
def test_default_widths_are_whole_blocks(hidden: int) -> None:
    width = default_width(hidden)
    assert width % 32 == 0
    assert hidden / 16 <= width < hidden / 16 + 33


def test_before_training_they_add_nothing(tmp_path: Path) -> None:
    base = save_llama(tmp_path / "base")
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    before = logits(plain)
    sequential.attach(plain, base, "PFEIFFER", None, 0)
    assert np.array_equal(logits(plain), before)
    trained = [name for name, p in plain.named_parameters() if p.requires_grad]
    assert trained and all(f".{MODULE}." in name for name in trained)
    source = WithBottlenecks(SafetensorsSource(base), "PFEIFFER")
    assert {name for name in source.tensors() if f".{MODULE}." in name} == set(trained)


def test_a_factor_scales_what_they_add(tmp_path: Path) -> None:
    base = save_llama(tmp_path / "base")
    adapter = save_sequential(base, tmp_path / "adapter")
    whole, half = (
        merged_source(SafetensorsSource(base), adapter, weight=weight) for weight in (1.0, 0.5)
    )
    for name in whole.changed:
        factor = 0.5 if ".up." in name else 1
        assert np.allclose(read_tensor(half, name), factor * read_tensor(whole, name))


def test_where_they_have_no_place_they_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    base = save_llama(tmp_path / "base")
    adapter = save_sequential(base, tmp_path / "adapter")
    given = ["--base", base, "--adapter", adapter]
    for arguments, said in (
        (["export", *given, "--format", "gguf", "--quant", "Q8_0", "--out", tmp_path / "m.gguf"],
         "llama.cpp's graphs have no place for the bottlenecks of houlsby"),
        (["merge", *given, "--out", tmp_path / "merged"], "a folder of plain weights"),
        (["export", *given, "--format", "gguf", "--adapter-mode", "separate",
          "--out", tmp_path / "a.gguf"], "without --adapter-mode separate"),
        (["export", *given, "--format", "onnx", "--quant", "fp32", "--exporter", "builder",
          "--out", tmp_path / "o"], "use stream"),
    ):  # fmt: skip
        done = CliRunner().invoke(cli, [str(argument) for argument in arguments])
        assert done.exit_code == 2, done.output
        assert said in done.stderr.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]
    with pytest.raises(UnsupportedError, match="beside others there is no place"):
        merged_source(merged_source(SafetensorsSource(base), adapter), adapter)
    with pytest.raises(ValueError, match="compare the method adapter"):
        MethodWish(method="pfeiffer")


def test_a_run_refuses_gguf_before_any_work(tmp_path: Path) -> None:
    base = save_llama(tmp_path / "base")
    recipe = (
        f"name: a\nbase: {base}\ndata: {{train: python-docs}}\ntrain: {{method: pfeiffer}}\n"
        "export: [{format: FORMAT, quantization: QUANT}]\n"
    )
    gguf = parse_recipe(recipe.replace("FORMAT", "gguf").replace("QUANT", "Q8_0"), "a")
    with pytest.raises(UnsupportedError, match="--format onnx"):
        plan_targets(gguf, model_to_be(gguf, None))
    onnx = parse_recipe(recipe.replace("FORMAT", "onnx").replace("QUANT", "int4"), "a")
    (target,) = plan_targets(onnx, model_to_be(onnx, None))
    assert target.format == "onnx"
    dynamic = parse_recipe(recipe.replace("FORMAT", "onnx").replace("QUANT", "int8-dynamic"), "a")
    with pytest.raises(UnsupportedError, match="export int8 or int4"):
        plan_targets(dynamic, model_to_be(dynamic, None))


def test_a_family_without_a_graph_is_refused_before_it_is_trained(tmp_path: Path) -> None:
    source = SafetensorsSource(save_model(tmp_path / "granite", "granite"))
    settings = TrainSettings(method="pfeiffer")
    with pytest.raises(UnsupportedError, match="does not know the architecture Granite"):
        with_inserted(source, settings)


def test_an_adapter_says_what_can_carry_it(tmp_path: Path) -> None:
    base = save_llama(tmp_path / "base")
    adapter = save_sequential(base, tmp_path / "adapter")
    done = CliRunner().invoke(cli, ["inspect", str(adapter), "--base", str(base), "--json"])
    assert done.exit_code == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert (report["method"], report["r"]) == ("houlsby", 24)
    can = {(t["format"], t["mode"]): t["possible"] for t in report["targets"]}
    assert can == {
        ("gguf", "merged"): False, ("gguf", "separate"): False,
        ("onnx", "merged"): True, ("onnx", "separate"): False,
    }  # fmt: skip


def test_misfits_are_named(tmp_path: Path) -> None:
    base = save_llama(tmp_path / "base")
    adapter = save_sequential(base, tmp_path / "adapter")
    source = SafetensorsSource(base)
    larger = SafetensorsSource(save_llama(tmp_path / "larger", layers=3))
    with pytest.raises(AdapterError, match=r"has no 'model.layers.2.*adapter.down.weight'"):
        merged_source(larger, adapter)
    smaller = SafetensorsSource(save_llama(tmp_path / "smaller", layers=1))
    with pytest.raises(AdapterError, match=r"'model.layers.1.* for which the base has no place"):
        merged_source(smaller, adapter)
    thinner = SafetensorsSource(save_llama(tmp_path / "thinner", hidden=32))
    with pytest.raises(AdapterError, match=r"has shape .*64.* but .*32"):
        merged_source(thinner, adapter)
    absurd = shutil.copytree(adapter, tmp_path / "absurd")
    for width, said in ((0, "0 wide"), (-1, "-1 wide"), (10**12, "has shape")):
        config = json.loads((adapter / CONFIG).read_text()) | {"r": width}
        (absurd / CONFIG).write_text(json.dumps(config))
        with pytest.raises(AdapterError, match="do not fit the base"):
            live(base, absurd)
        with pytest.raises(AdapterError, match=said):
            merged_source(source, absurd)
    weights = load_file(adapter / WEIGHTS)
    name = next(iter(weights))
    foreign = shutil.copytree(adapter, tmp_path / "foreign")
    save_file(weights | {"lora_A.weight": torch.zeros(2)}, foreign / WEIGHTS)
    with pytest.raises(AdapterError, match=r"'lora_A\.weight', which is no part"):
        merged_source(source, foreign)
    save_file(weights | {name: torch.full_like(weights[name], float("nan"))}, foreign / WEIGHTS)
    with pytest.raises(AdapterError, match="NaN or infinite"):
        read_tensor(merged_source(source, foreign), name)


def test_a_model_with_experts_is_refused(tmp_path: Path) -> None:
    source = SafetensorsSource(save_model(tmp_path / "experts", "mixtral"))
    with pytest.raises(UnsupportedError, match="train it with --method lora"):
        projections(source, FORMS["HOULSBY"])
