"""Merged tensors equal the live adapted model's, for every method and every odd corner."""

from __future__ import annotations

import copy
import json
import warnings
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import (
    BOFTConfig,
    HRAConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    MissConfig,
    OFTConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
)
from transformers import AutoModelForCausalLM

from edgeadapt.adapters import merged_source
from edgeadapt.errors import AdapterError, EdgeAdaptError, InputError, UnsupportedError
from edgeadapt.safetensors_io import SafetensorsSource
from edgeadapt.weights import WeightSource, read_tensor
from tests.tiny import save_llama

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def save_adapter(base: Path, out: Path, config: PeftConfig, seed: int = 1) -> Path:
    """An adapter whose every trainable number is random, as after training."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(  # PEFT writes into the config that it is given
            AutoModelForCausalLM.from_pretrained(base), copy.deepcopy(config)
        )
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
        model.save_pretrained(out)
    return out


def live_model(base: Path, adapter: Path) -> torch.nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter
        ).eval()


def model_of(source: WeightSource) -> torch.nn.Module:
    """A plain transformers model holding exactly the source's tensors."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**source.config)).float().eval()
    state = {name: torch.from_numpy(read_tensor(source, name)) for name in source.tensors()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"} and (
        not missing or source.config["tie_word_embeddings"]
    )
    return model


@torch.no_grad()
def assert_same_logits(left: torch.nn.Module, right: torch.nn.Module) -> None:
    """In float64: in float32, rounding alone can differ by 1e-4 from one CPU to the next."""
    ids = torch.arange(3, 60)[None]
    a, b = (deepcopy(model).double()(input_ids=ids).logits for model in (left, right))
    assert torch.isfinite(a).all()
    assert (a - b).abs().max() <= 2e-5 * max(1.0, float(a.abs().max()))


def assert_same_weights(source: WeightSource, merged: torch.nn.Module) -> None:
    """Within 1e-6 of each tensor's largest value."""
    state = merged.state_dict()
    for name in source.tensors():
        ours, theirs = read_tensor(source, name), state[name].float().numpy()
        assert np.abs(ours - theirs).max() <= 1e-6 * np.abs(theirs).max(), name


LORA_CASES = {
    "lora": LoraConfig(r=8, lora_alpha=16, target_modules=ALL),
    "rslora": LoraConfig(r=8, lora_alpha=16, use_rslora=True, target_modules=ALL),
    "dora": LoraConfig(r=4, lora_alpha=8, use_dora=True, target_modules=ALL),
    "patterns": LoraConfig(
        r=8,
        lora_alpha=16,
        target_modules=ALL,
        rank_pattern={r"layers\.0\.self_attn\.q_proj": 4, "down_proj": 2},
        alpha_pattern={"down_proj": 64, r"layers\.1\..*up_proj": 4},
    ),
    "bias-lora-only": LoraConfig(r=4, bias="lora_only", target_modules=["q_proj", "o_proj"]),
    "bias-all": LoraConfig(r=4, bias="all", target_modules=["q_proj"]),
    "lora-bias": LoraConfig(r=4, lora_bias=True, target_modules=["q_proj"]),
    "eva": LoraConfig(r=4, init_lora_weights="eva", target_modules=["q_proj"]),
    "gaussian": LoraConfig(r=4, init_lora_weights="gaussian", target_modules=["q_proj"]),
    "orthogonal": LoraConfig(r=4, init_lora_weights="orthogonal", target_modules=["q_proj"]),
    "norm-to-save": LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["norm"]),
    "ia3": IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
    "ia3-all-bias": IA3Config(
        target_modules=["q_proj", "o_proj", "up_proj"], feedforward_modules=["up_proj"]
    ),
}

PEFT_CASES = {
    "loha": LoHaConfig(r=4, alpha=8, target_modules=["q_proj", "down_proj"]),
    "lokr": LoKrConfig(r=4, alpha=8, target_modules=["q_proj", "down_proj"]),
    "lokr-full": LoKrConfig(
        r=4, alpha=8, decompose_both=True, decompose_factor=4, target_modules=["q_proj"]
    ),
    "oft": OFTConfig(r=0, oft_block_size=16, target_modules=["q_proj", "down_proj"]),
    "boft": BOFTConfig(boft_block_size=8, target_modules=["q_proj"]),
    "hra": HRAConfig(r=4, target_modules=["q_proj", "up_proj"]),
    "miss": MissConfig(r=4, target_modules=["q_proj", "up_proj"]),
}


@pytest.fixture(scope="module")
def biased_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("biased")
    save_llama(folder, tied=False, attention_bias=True)
    # Untrained biases are all zero, which hides mistakes about them.
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tied_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("tied"), tied=True)


@pytest.mark.parametrize("name", [*LORA_CASES, *PEFT_CASES])
def test_equals_live_and_merge_and_unload(name: str, biased_base: Path, tmp_path: Path) -> None:
    config = (LORA_CASES | PEFT_CASES)[name]
    adapter = save_adapter(biased_base, tmp_path / "a", config)
    source = merged_source(SafetensorsSource(biased_base), adapter)
    live = live_model(biased_base, adapter)
    ours = model_of(source)
    assert_same_logits(live, ours)
    base = AutoModelForCausalLM.from_pretrained(biased_base)
    with torch.no_grad():  # the adapter does something, or equality would prove nothing
        ids = torch.arange(3, 60)[None]
        assert (base(input_ids=ids).logits - ours(input_ids=ids).logits).abs().max() > 1e-3
    assert_same_weights(source, live.merge_and_unload())


TIED_CASES = {
    "embedding": LoraConfig(r=4, target_modules=["embed_tokens"]),
    "embedding-dora": LoraConfig(r=4, use_dora=True, target_modules=["embed_tokens", "q_proj"]),
    "head": LoraConfig(r=4, target_modules=["lm_head"]),
    "both": LoraConfig(r=4, target_modules=["embed_tokens", "lm_head"]),
    "both-to-save": LoraConfig(
        r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]
    ),
    "embedding-to-save": LoraConfig(
        r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens"]
    ),
    "tied-to-save": LoraConfig(
        r=4,
        target_modules=["q_proj"],
        modules_to_save=["embed_tokens"],
        ensure_weight_tying=True,
    ),
    "tied-embedding": LoraConfig(r=4, target_modules=["embed_tokens"], ensure_weight_tying=True),
    "tokens": LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[3, 5, 40]),
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", list(TIED_CASES))
def test_embeddings_and_heads_equal_live(
    name: str, tied: bool, tied_base: Path, biased_base: Path, tmp_path: Path
) -> None:
    base = tied_base if tied else biased_base
    adapter = save_adapter(base, tmp_path / "a", TIED_CASES[name])
    source = merged_source(SafetensorsSource(base), adapter)
    assert_same_logits(live_model(base, adapter), model_of(source))


@pytest.mark.parametrize("name", ["tied-to-save", "tied-embedding", "tokens"])
def test_stays_tied_where_both_ends_are_equal(name: str, tied_base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tied_base, tmp_path / "a", TIED_CASES[name])
    source = merged_source(SafetensorsSource(tied_base), adapter)
    assert source.config["tie_word_embeddings"] is True
    assert "lm_head.weight" not in source.tensors()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_base_is_merged_in_float32(dtype: str, tmp_path: Path) -> None:
    base = save_llama(tmp_path / "b", dtype=dtype)
    adapter = save_adapter(base, tmp_path / "a", LORA_CASES["dora"])
    source = merged_source(SafetensorsSource(base), adapter)
    assert_same_logits(live_model(base, adapter), model_of(source))


def test_rows_do_not_depend_on_the_chunking(biased_base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(biased_base, tmp_path / "a", TIED_CASES["embedding-dora"])
    source = merged_source(SafetensorsSource(biased_base), adapter)
    for name, info in source.tensors().items():
        whole = read_tensor(source, name)
        pieces = [
            source.rows(name, start, min(start + 7, info.shape[0]))
            for start in range(0, info.shape[0], 7)
        ]
        np.testing.assert_allclose(np.concatenate(pieces), whole, rtol=1e-6, atol=1e-7)


def edit_config(adapter: Path, **changes: object) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def merge_error(base: Path, adapter: Path) -> EdgeAdaptError:
    with pytest.raises(EdgeAdaptError) as caught:
        source = merged_source(SafetensorsSource(base), adapter)
        for name in source.tensors():
            read_tensor(source, name)
    return caught.value


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga"])
def test_base_changing_initialisation_is_refused(
    init: str, biased_base: Path, tmp_path: Path
) -> None:
    adapter = save_adapter(biased_base, tmp_path / "a", LORA_CASES["lora"])
    edit_config(adapter, init_lora_weights=init)
    error = merge_error(biased_base, adapter)
    assert isinstance(error, UnsupportedError)
    assert "path_initial_model_for_weight_conversion" in str(error)


def test_pissa_converted_by_peft_is_accepted(biased_base: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(biased_base),
            LoraConfig(r=4, init_lora_weights="pissa", target_modules=["q_proj"]),
        )
        model.peft_config["default"].init_lora_weights = True
        model.save_pretrained(tmp_path / "init")
        model.peft_config["default"].init_lora_weights = "pissa"
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.add_(torch.randn_like(parameter) * 0.05)
        model.save_pretrained(
            tmp_path / "a", path_initial_model_for_weight_conversion=str(tmp_path / "init")
        )
    source = merged_source(SafetensorsSource(biased_base), tmp_path / "a")
    assert_same_logits(model.eval(), model_of(source))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"alora_invocation_tokens": [1, 2]}, "activated LoRA"),
        ({"use_qalora": True}, "QALoRA"),
        ({"init_lora_weights": "newest"}, "newest"),
        ({"peft_type": "VERA"}, "vera"),
        ({"peft_type": "PREFIX_TUNING"}, "nothing to merge"),
        ({"r": 3}, "rank"),
        ({"peft_type": None}, "peft_type"),
        ({"rank_pattern": {"(": 4}}, "regular expression"),
        ({"r": "many"}, "wrong kind"),
    ],
)
def test_configs_that_cannot_be_merged(
    changes: dict[str, object], words: str, biased_base: Path, tmp_path: Path
) -> None:
    adapter = save_adapter(biased_base, tmp_path / "a", LORA_CASES["lora"])
    edit_config(adapter, **changes)
    assert words in str(merge_error(biased_base, adapter))


def test_adapter_for_another_base_is_named(biased_base: Path, tmp_path: Path) -> None:
    for other in ({"layers": 3}, {"intermediate": 128}, {"hidden": 32}):
        base = save_llama(tmp_path / "b", tied=False, **other)
        adapter = save_adapter(base, tmp_path / "a", LORA_CASES["lora"])
        error = merge_error(biased_base, adapter)
        assert isinstance(error, AdapterError)
        assert "--base" in str(error) or "give that base" in str(error)


def test_pickled_adapter_is_refused(biased_base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(biased_base, tmp_path / "a", LORA_CASES["lora"])
    weights = adapter / "adapter_model.safetensors"
    weights.rename(adapter / "adapter_model.bin")
    error = merge_error(biased_base, adapter)
    assert isinstance(error, InputError) and "pickle" in str(error)


@pytest.mark.parametrize("case", ["nan", "half", "unknown", "empty"])
def test_damaged_adapter_tensors(case: str, biased_base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    adapter = save_adapter(biased_base, tmp_path / "a", LORA_CASES["lora"])
    path = adapter / "adapter_model.safetensors"
    state = load_file(path)
    first = next(iter(state))
    if case == "nan":
        state[first] = state[first] * float("nan")
    elif case == "half":
        del state[first]
    elif case == "unknown":
        state["base_model.model.model.layers.0.mystery"] = torch.zeros(3)
    else:
        state = {}
    save_file(state, path)
    assert isinstance(merge_error(biased_base, adapter), AdapterError)


def test_missing_adapter(biased_base: Path, tmp_path: Path) -> None:
    assert "does not exist" in str(merge_error(biased_base, tmp_path / "none"))
    assert "adapter_config.json" in str(merge_error(biased_base, biased_base))
