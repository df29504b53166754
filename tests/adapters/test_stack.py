"""Several adapters at once equal PEFT's live model and its own combination of them."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel
from transformers import AutoModelForCausalLM

from edgeadapt.adapters import AdapterChoice, parse_adapters, stacked_source
from edgeadapt.errors import AdapterError, InputError, UnsupportedError
from edgeadapt.safetensors_io import SafetensorsSource
from tests.adapters.test_merged import (
    ALL,
    assert_same_logits,
    assert_same_weights,
    model_of,
    save_adapter,
)
from tests.tiny import save_llama

CONFIGS = {
    "lora": LoraConfig(r=8, lora_alpha=16, target_modules=ALL),
    "patterns": LoraConfig(
        r=4,
        use_rslora=True,
        target_modules=["q_proj", "down_proj", "embed_tokens"],
        rank_pattern={"down_proj": 2},
        alpha_pattern={"q_proj": 3},
    ),
    "dora": LoraConfig(r=4, use_dora=True, target_modules=["q_proj", "up_proj", "embed_tokens"]),
    "dora2": LoraConfig(r=2, use_dora=True, target_modules=["q_proj", "embed_tokens"]),
    "to-save": LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "head": LoraConfig(r=2, target_modules=["lm_head"]),
    "ia3": IA3Config(target_modules=["k_proj", "up_proj"], feedforward_modules=[]),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("stack") / "base", tied=False)


@pytest.fixture(scope="module")
def adapters(base: Path) -> dict[str, Path]:
    return {
        name: save_adapter(base, base.parent / name, config, seed=seed)
        for seed, (name, config) in enumerate(CONFIGS.items())
    }


def live(base: Path, paths: list[Path]) -> PeftModel:
    """PEFT with all the adapters loaded, and active."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(base)
        model = PeftModel.from_pretrained(model, paths[0], adapter_name=paths[0].name)
        for path in paths[1:]:
            model.load_adapter(path, adapter_name=path.name)
        model.base_model.set_adapter([path.name for path in paths])
    return model.eval()


@pytest.mark.parametrize(
    "names",
    [("lora", "patterns"), ("dora", "dora2"), ("lora", "dora"), ("dora", "patterns", "lora")],
    ids="+".join,
)
def test_stacked_equals_live_and_merge_and_unload(
    names: tuple[str, ...], base: Path, adapters: dict[str, Path]
) -> None:
    paths = [adapters[name] for name in names]
    source = stacked_source(SafetensorsSource(base), parse_adapters(paths))
    model = live(base, paths)
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        expected, ours = model(input_ids=ids).logits, model_of(source)(input_ids=ids).logits
    assert (ours - expected).abs().max() < 1e-4 * expected.abs().max()  # rounding adds up
    assert_same_weights(source, model.merge_and_unload(adapter_names=[p.name for p in paths]))


@pytest.mark.parametrize("weights", [(0.7, 0.3), (1.0, -1.5), (0.0, 2.0)])
def test_weighted_equals_cat(
    weights: tuple[float, float], base: Path, adapters: dict[str, Path]
) -> None:
    paths = [adapters["lora"], adapters["patterns"]]
    choices = [AdapterChoice(p, w) for p, w in zip(paths, weights, strict=True)]
    source = stacked_source(SafetensorsSource(base), choices)
    model = live(base, paths)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.add_weighted_adapter(
            [p.name for p in paths], list(weights), "both", combination_type="cat"
        )
        model.set_adapter("both")
    assert_same_logits(model, model_of(source))
    assert_same_weights(source, model.merge_and_unload())


def test_lora_then_ia3_scales_what_was_added(base: Path, adapters: dict[str, Path]) -> None:
    one = stacked_source(SafetensorsSource(base), [AdapterChoice(adapters["lora"])])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = PeftModel.from_pretrained(model_of(one), adapters["ia3"]).eval()
    both = stacked_source(
        SafetensorsSource(base), parse_adapters([adapters["lora"], adapters["ia3"]])
    )
    assert_same_logits(merged, model_of(both))


@pytest.mark.parametrize("name", ["dora", "to-save", "ia3"])
def test_only_plain_loras_have_weights(name: str, base: Path, adapters: dict[str, Path]) -> None:
    with pytest.raises(UnsupportedError, match="cannot be weighted"):
        stacked_source(SafetensorsSource(base), [AdapterChoice(adapters[name], 0.5)])


def test_a_copy_may_not_undo_another_adapter(base: Path, adapters: dict[str, Path]) -> None:
    first, second = adapters["head"], adapters["to-save"]
    with pytest.raises(AdapterError, match=r"lm_head\.weight"):
        stacked_source(SafetensorsSource(base), parse_adapters([first, second]))
    source = stacked_source(SafetensorsSource(base), parse_adapters([second, first]))
    assert torch.isfinite(model_of(source)(input_ids=torch.arange(3, 9)[None]).logits).all()


def test_spelling_of_weights(tmp_path: Path) -> None:
    odd = tmp_path / "a=0.5"
    odd.mkdir()
    assert parse_adapters([str(odd)]) == (AdapterChoice(odd),)
    assert parse_adapters(["x=0.7", "y=-1e-1"]) == (
        AdapterChoice(Path("x"), 0.7),
        AdapterChoice(Path("y"), -0.1),
    )
    for bad in (["x=0.7", "y"], ["x=", "y=1"], ["x=nan"], ["=1"], ["x", "x"], ["x=high"]):
        with pytest.raises(InputError):
            parse_adapters(bad)
