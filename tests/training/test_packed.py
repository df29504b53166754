"""A GGUF base that stays packed in training, beside the same base dequantized."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from click.testing import CliRunner
from safetensors.numpy import load_file

from edgeadapt.base_model import gguf_behind, resolve_base
from edgeadapt.cli import cli
from edgeadapt.converters.base import ConversionRequest
from edgeadapt.converters.gguf.converter import GgufConverter
from edgeadapt.errors import InputError
from edgeadapt.gguf_split import open_gguf
from edgeadapt.importers.gguf_file import source_in
from edgeadapt.safetensors_io import SafetensorsSource
from edgeadapt.training import base_weights, packed
from edgeadapt.training.methods import METHODS
from edgeadapt.training.settings import TrainSettings
from edgeadapt.training.train import train
from tests.tiny import save_llama

pytest.importorskip("llama_cpp")
ABLE = [name for name, method in METHODS.items() if method.multiplies_only]
IDS = torch.arange(40).reshape(2, 20) * 7 % 320


def quantized(folder: Path, *, tied: bool) -> Path:
    base = save_llama(
        folder / "base", intermediate=128, attention_bias=True, tie_word_embeddings=tied
    )
    made = ConversionRequest(SafetensorsSource(base), base, "Q4_0", "tiny", threads=1)
    return GgufConverter().convert(made, folder / "tiny.gguf").path


@pytest.fixture(scope="module")
def gguf(tmp_path_factory) -> Path:
    return quantized(tmp_path_factory.mktemp("packed"), tied=True)


def both(gguf: Path):
    folder = resolve_base(str(gguf))
    return (
        transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        packed.load_packed(folder, source_in(open_gguf(gguf))),
    )


@pytest.mark.parametrize("tied", [True, False])
def test_logits_and_gradients_are_those_of_the_dequantized(tmp_path, monkeypatch, tied):
    monkeypatch.setattr(packed, "row_chunks", lambda info: [(0, 5), (5, info.shape[0])])
    grown, small = both(quantized(tmp_path, tied=tied))
    assert not small.training
    inputs = grown.get_input_embeddings()(IDS)
    assert torch.equal(small.get_input_embeddings()(IDS), inputs)
    results = []
    for model in (grown, small):
        given = inputs.detach().clone().requires_grad_()
        logits = model(inputs_embeds=given).logits
        logits.square().sum().backward()
        results.append((logits.detach(), given.grad))
    for one, other in zip(*results, strict=True):
        assert (one - other).abs().max() <= 1e-5 * one.abs().max()


def test_no_matrix_is_held(gguf):
    _, small = both(gguf)
    assert all(parameter.numel() <= 128 for parameter in small.parameters())
    assert sum(p.numel() for p in small.parameters()) > 0  # norms and biases


@pytest.mark.parametrize("method", ABLE)
def test_the_same_comes_out_of_training(gguf, data, tmp_path, method):
    base, made = resolve_base(str(gguf)), []
    for weights in ("dequantized", "packed"):
        settings = TrainSettings(
            method=method, max_steps=3, virtual_tokens=4, base_weights=weights,
            gradient_checkpointing=method == "lora",
        )  # fmt: skip
        out = tmp_path / weights
        made.append(train(base, data, data, settings, out, base_spec=str(gguf)))
    grown, small = made
    assert small.record["base_weights"] == "packed"
    assert small.record["quantization"] == grown.record["quantization"] == "float32"
    assert small.record["losses"] == pytest.approx(grown.record["losses"], rel=1e-5)
    assert small.record["held_out"]["after"]["nll"] == pytest.approx(
        grown.record["held_out"]["after"]["nll"], rel=1e-5
    )
    expected = load_file(grown.path / "adapter_model.safetensors")
    ours = load_file(small.path / "adapter_model.safetensors")
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        assert abs(ours[name] - tensor).max() <= 2e-4, name
        assert abs(tensor).max() > 0 or "lora_A" in name


@pytest.mark.parametrize(("free", "chosen"), [(1 << 40, "dequantized"), (100_000, "packed")])
def test_memory_decides_where_nobody_does(gguf, data, tmp_path, monkeypatch, free, chosen):
    monkeypatch.setattr(base_weights, "available_memory", lambda: free)
    settings = TrainSettings(method="lora", max_steps=1)
    out = tmp_path / "out"
    result = train(resolve_base(str(gguf)), data, None, settings, out, base_spec=str(gguf))
    assert result.record["base_weights"] == chosen


@pytest.mark.parametrize("method", sorted(METHODS.keys() - ABLE))
def test_methods_that_read_the_weights_refuse(gguf, data, tmp_path, method):
    settings = TrainSettings(method=method, base_weights="packed")
    with pytest.raises(InputError, match=f"and {method} does more"):
        train(resolve_base(str(gguf)), data, None, settings, tmp_path / "o", base_spec=str(gguf))
    assert not list(tmp_path.iterdir())


def test_a_folder_is_not_packed(base, data, tmp_path):
    settings = TrainSettings(method="lora", base_weights="packed")
    with pytest.raises(InputError, match="is for a GGUF base, and tiny is none"):
        train(base, data, None, settings, tmp_path / "o", base_spec="tiny")


def test_a_gpu_is_not_packed_for(gguf, monkeypatch):
    folder = resolve_base(str(gguf))
    cuda = SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: True))
    monkeypatch.setattr(base_weights, "need", lambda *_: cuda)
    settings = TrainSettings(method="lora")
    assert base_weights.packable(folder, str(gguf), settings) is None
    with pytest.raises(InputError, match="on a GPU, --method qlora"):
        packed_settings = settings.model_copy(update={"base_weights": "packed"})
        base_weights.packable(folder, str(gguf), packed_settings)


def test_only_the_file_that_was_imported_is_behind_a_folder(gguf, base, tmp_path):
    assert gguf_behind(resolve_base(str(gguf)), str(gguf)) == gguf
    assert gguf_behind(base, str(gguf)) is None
    assert gguf_behind(base, str(base)) is None
    assert gguf_behind(base, "owner/name") is None


def test_the_command(gguf, data, tmp_path):
    out = tmp_path / "adapter"
    arguments = ["train", "--base", str(gguf), "--data", str(data), "--method", "lora"]
    arguments += ["--max-steps", "1", "--set", "base_weights=packed", "--out", str(out)]
    done = CliRunner().invoke(cli, [*arguments, "--json", "-q"])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["base_weights"] == "packed"
