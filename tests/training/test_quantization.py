from __future__ import annotations

import contextlib
import logging

import bitsandbytes
import peft
import pytest
import torch
import transformers

from edgeadapt.errors import RuntimeFailure
from edgeadapt.training.quantization import (
    Nf4Settings,
    bitsandbytes_config,
    guard_linear4bit,
    nf4_settings,
    quiet_bitsandbytes,
)

FLOAT32 = Nf4Settings("float32", False, "test")


def test_the_choice_follows_the_hardware():
    def chosen(**hardware: bool) -> tuple[str, bool]:
        none = {"cuda": False, "cuda_bf16": False, "avx512_bf16": False}
        settings = nf4_settings(**(none | hardware))
        return settings.compute_dtype, settings.double_quantization

    assert chosen() == ("float32", False)
    assert chosen(avx512_bf16=True) == ("bfloat16", False)
    assert chosen(cuda=True) == ("float16", True)
    assert chosen(cuda=True, cuda_bf16=True, avx512_bf16=True) == ("bfloat16", True)


def test_the_line_about_kernels_is_dropped_and_others_are_not(caplog):
    quiet_bitsandbytes()
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    logger.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s.", "x")
    logger.warning("something else")
    assert caplog.messages == ["something else"]


def nf4_model(base):
    return transformers.AutoModelForCausalLM.from_pretrained(
        base, quantization_config=bitsandbytes_config(FLOAT32), device_map={"": "cpu"}
    )


def linear4bit(model):
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, bitsandbytes.nn.Linear4bit)
    ]


def as_on_a_cpu_with_avx512_bf16(model):
    """bitsandbytes asks the CPU once, when a layer is made."""
    for _, layer in linear4bit(model):
        layer.support_avx512bf16_for_cpu = True


def evaluate(model, ids):
    model.eval()
    with torch.no_grad():
        model(input_ids=ids)
    model.train()


def lora_gradients(model, ids):
    torch.manual_seed(0)
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    )
    evaluate(adapted, ids)
    adapted(input_ids=ids, labels=ids).loss.backward()
    return {n: p.grad for n, p in adapted.named_parameters() if p.requires_grad}


def test_gradients_after_an_evaluation_are_those_of_the_dequantized_model(base):
    ids = torch.arange(40).reshape(2, 20) + 20
    quantized = nf4_model(base)
    as_on_a_cpu_with_avx512_bf16(quantized)
    assert guard_linear4bit(quantized) == [name for name, _ in linear4bit(quantized)]
    assert len(linear4bit(quantized)) == 14

    dense = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    original = dense.get_submodule("model.layers.0.mlp.up_proj").weight.clone()
    for name, layer in linear4bit(quantized):
        weight = bitsandbytes.functional.dequantize_4bit(layer.weight, layer.weight.quant_state)
        dense.get_submodule(name).weight.data = weight.float()
    changed = dense.get_submodule("model.layers.0.mlp.up_proj").weight
    assert (changed - original).norm() > 0.05 * original.norm()

    found, expected = lora_gradients(quantized, ids), lora_gradients(dense, ids)
    assert found.keys() == expected.keys() and len(found) == 28
    for name, gradient in expected.items():
        assert gradient.norm() > 0
        assert (found[name] - gradient).norm() < 1e-3 * gradient.norm(), name


def test_without_the_guard_an_evaluation_repacks_the_weights(base):
    model = nf4_model(base)
    as_on_a_cpu_with_avx512_bf16(model)
    layer = linear4bit(model)[0][1]
    packed = layer.weight.data.clone()
    with contextlib.suppress(Exception):  # a CPU without the feature has no kernel for them
        evaluate(model, torch.arange(20)[None])
    assert not torch.equal(layer.weight.data.view(-1), packed.view(-1))
    with pytest.raises(RuntimeFailure, match="repacked"):
        guard_linear4bit(model)
