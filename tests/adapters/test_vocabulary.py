"""Tokens that were added in training arrive in the artifact: rows, texts and ids."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from edgeadapt.cli import cli
from edgeadapt.errors import AdapterError
from edgeadapt.export import export, open_model
from edgeadapt.gguf_io import GgufFile
from tests.adapters.test_merged import assert_same_logits, model_of, save_adapter
from tests.tiny import save_llama

NEW = ["<|tool|>", "<|result|>", "frobnicate"]


@pytest.fixture(scope="module", params=["tied", "untied"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vocabulary") / request.param
    return save_llama(folder, tied=request.param == "tied")


def train_with_new_tokens(base: Path, out: Path, config: LoraConfig) -> PeftModel:
    """An adapter, its tokenizer with three more tokens, and the live model that it makes."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"additional_special_tokens": NEW[:2]})
    tokenizer.add_tokens(NEW[2:])
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(base)
        model.resize_token_embeddings(len(tokenizer))
        model = get_peft_model(model, config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return model.eval()


CONFIGS = {
    "modules_to_save": LoraConfig(
        r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]
    ),
    "save_embedding_layers": LoraConfig(r=4, target_modules=["q_proj"]),
    "targeted": LoraConfig(r=4, target_modules=["q_proj", "embed_tokens", "lm_head"]),
}


@pytest.mark.parametrize("name", list(CONFIGS))
def test_new_tokens_reach_the_gguf_file(name: str, base: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    live = train_with_new_tokens(base, tmp_path / "a", CONFIGS[name])
    model = open_model(str(base), tmp_path / "a")
    merged = model_of(model.source)
    assert_same_logits(live, merged)
    file = GgufFile(export(model, "gguf", "F32", tmp_path / "m.gguf").path)
    tokens = file.strings("tokenizer.ggml.tokens")
    assert tokens[320:] == NEW
    assert file.metadata["tokenizer.ggml.token_type"][320:] == [3, 3, 4]
    assert file.tensors["token_embd.weight"].shape == (323, 64)
    expected = merged.get_submodule("model.embed_tokens").weight.detach().numpy()
    np.testing.assert_array_equal(file.rows("token_embd.weight", 300, 323), expected[300:])


def test_the_chat_template_of_training_ships(base: Path, tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules=["q_proj"])
    adapter = save_adapter(base, tmp_path / "a", config)
    assert open_model(str(base), adapter).folder == base
    (adapter / "tokenizer.json").write_bytes((base / "tokenizer.json").read_bytes())
    assert open_model(str(base), adapter).folder == base  # the same one, saved again
    (adapter / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ 1 }}"}))
    folder = open_model(str(base), adapter).folder
    assert (folder / "chat_template.jinja").read_text() == "{{ 1 }}"
    assert (folder / "generation_config.json").is_file()


def test_two_tokenizers_cannot_both_ship(base: Path, tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules=["q_proj"])
    for name in "ab":
        adapter = save_adapter(base, tmp_path / name, config)
        (adapter / "tokenizer.json").write_bytes((base / "tokenizer.json").read_bytes())
        (adapter / "chat_template.jinja").write_text(name)
    with pytest.raises(AdapterError, match="different tokenizers"):
        open_model(str(base), [tmp_path / "a", tmp_path / "b"])


def test_an_adapter_with_new_tokens_is_evaluated_on_text_that_has_them(
    base: Path, tmp_path: Path
) -> None:
    pytest.importorskip("llama_cpp")
    train_with_new_tokens(base, tmp_path / "a", CONFIGS["modules_to_save"])
    model = open_model(str(base), tmp_path / "a")
    export(model, "gguf", "Q8_0", tmp_path / "m.gguf")
    text = "What is <|tool|> the quick brown fox frobnicate <|result|> of dogs? " * 12
    (tmp_path / "held.txt").write_text(text)
    told = CliRunner().invoke(
        cli,
        [
            "evaluate", str(tmp_path / "m.gguf"), "--base", str(base), "--adapter",
            str(tmp_path / "a"), "--data", str(tmp_path / "held.txt"), "--window", "64",
            "--threads", "1", "--json", "-q",
        ],
    )  # fmt: skip
    assert told.exit_code in (0, 1), told.output  # whether a random model keeps its gates is open
    (artifact,) = json.loads(told.stdout)["artifacts"]
    found = artifact["fidelity"]["llama-cpp"]
    assert 0 <= found["fidelity"]["mean_kl"]["value"] < 0.1
    assert found["bits"]["kl"]["value"] >= 0
    assert artifact["parity"]["passed"]
