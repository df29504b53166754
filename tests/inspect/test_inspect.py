"""What `inspect` says of each kind of thing, in text and as JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from peft import IA3Config, LoHaConfig, LoraConfig, PeftConfig

from edgeadapt.cli import cli
from edgeadapt.export import export, open_model
from edgeadapt.export_separate import export_adapter
from tests.adapters.test_merged import ALL, edit_config, save_adapter
from tests.onnx_folders import exported
from tests.test_imports import HEAVY
from tests.tiny import save_llama


def inspect(path: Path | str, *options: object) -> tuple[dict[str, Any], str]:
    """The JSON document and the text."""
    documents = []
    for form in (["--json"], []):
        result = CliRunner().invoke(cli, ["inspect", str(path), *map(str, options), *form])
        assert result.exit_code == 0, result.output
        documents.append(result.stdout)
    assert all(len(line) <= 80 for line in documents[1].splitlines())
    return json.loads(documents[0]), documents[1]


def verdicts(document: dict[str, Any]) -> dict[str, bool | None]:
    return {f"{t['format']} {t['mode']}": t["possible"] for t in document["targets"]}


def reasons(document: dict[str, Any]) -> dict[str, str]:
    return {f"{t['format']} {t['mode']}": t["reason"] for t in document["targets"]}


def test_an_adapter(tiny_model: Path, tmp_path: Path) -> None:
    config = LoraConfig(
        r=8,
        lora_alpha=16,
        use_rslora=True,
        target_modules=ALL,
        rank_pattern={"down_proj": 4},
        alpha_pattern={"k_proj": 32},
    )
    adapter = save_adapter(tiny_model, tmp_path / "a", config)
    held_out = {"before": {"perplexity": 90.0}, "after": {"perplexity": 20.5}}
    record = {"method": "qlora", "quantization": "nf4", "steps": 7, "held_out": held_out}
    (adapter / "edgeadapt.json").write_text(json.dumps(record))
    document, text = inspect(adapter)
    groups = {group["modules"]: group for group in document["groups"]}
    assert set(groups) == set(ALL)
    assert (groups["down_proj"]["r"], groups["down_proj"]["scaling"]) == (4, 8.0)
    assert groups["k_proj"]["scaling"] == pytest.approx(32 / 8**0.5)
    assert groups["q_proj"]["count"] == 2
    assert document["method"] == "rslora" and document["record"] == record
    rank8 = 8 * sum((64 + 64, 64 + 32, 64 + 32, 64 + 64, 64 + 96, 64 + 96))
    assert document["parameters"] == 2 * (rank8 + 4 * (64 + 96))
    assert document["base"]["share"] == pytest.approx(
        document["parameters"] / document["base"]["parameters"]
    )
    assert verdicts(document) == {
        "gguf merged": True, "gguf separate": True, "onnx merged": True, "onnx separate": True,
    }  # fmt: skip
    assert "down_proj x2: rank 4, alpha 16, scaling 8" in text
    assert "90.00 -> 20.50" in text.replace("\n", " ").replace("  ", "")


CASES: dict[str, tuple[PeftConfig, dict[str, Any], str | None, str]] = {
    # config, what to change in it, why gguf merged is refused, why gguf separate is
    "dora": (LoraConfig(r=4, use_dora=True, target_modules=["q_proj"]), {}, None, "DoRA"),
    "ia3": (IA3Config(target_modules=["k_proj"], feedforward_modules=[]), {}, None, "IA3"),
    "loha": (LoHaConfig(r=4, target_modules=["q_proj"]), {}, None, "loha"),
    "to-save": (
        LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["norm"]), {}, None, "copies",
    ),
    "tied-head": (LoraConfig(r=4, target_modules=["lm_head"]), {}, None, "lm_head"),
    "tokens": (
        LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[3]), {}, None, "tokens",
    ),
    "pissa": (
        LoraConfig(r=4, target_modules=["q_proj"]),
        {"init_lora_weights": "pissa"},
        "pissa",
        "pissa",
    ),
    "prefix": (
        LoraConfig(r=4, target_modules=["q_proj"]),
        {"peft_type": "PREFIX_TUNING"},
        "nothing to merge",
        "holds no prompt_embeddings",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(CASES))
def test_why_a_format_cannot_carry_an_adapter(name: str, tiny_model: Path, tmp_path: Path) -> None:
    config, changes, merged, separate = CASES[name]
    adapter = save_adapter(tiny_model, tmp_path / "a", config)
    edit_config(adapter, **changes)
    document, text = inspect(adapter)
    why = reasons(document)
    assert (why["gguf merged"] is None) == (merged is None)
    assert merged is None or merged in why["gguf merged"]
    assert separate in why["gguf separate"]
    assert separate in why["onnx separate"]
    assert "possible" not in text  # a target's record where the modules should be
    if name == "loha":
        assert "modules         q_proj" in text
    if name == "tied-head":
        assert "becomes a matrix of its own" in text.replace("\n" + " " * 18, " ")


def test_an_adapter_whose_base_is_not_here(tiny_model: Path, tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules=["q_proj"])
    adapter = save_adapter(tiny_model, tmp_path / "a", config)
    edit_config(adapter, base_model_name_or_path="someone/model")
    document, text = inspect(adapter)
    assert set(verdicts(document).values()) == {None}
    assert "someone/model (not here; give --base)" in text
    document, _ = inspect(adapter, "--base", tiny_model)
    assert verdicts(document)["gguf separate"] is True
    other = save_llama(tmp_path / "other", hidden=32)
    document, _ = inspect(adapter, "--base", other)
    assert "shape" in reasons(document)["gguf merged"]


def test_an_adapter_on_a_gguf_base(tiny_gguf: Path, tiny_model: Path, tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules=["q_proj"])
    adapter = save_adapter(tiny_model, tmp_path / "a", config)
    document, _ = inspect(adapter, "--base", tiny_gguf)
    assert verdicts(document)["gguf merged"] is True


def test_a_base(tiny_model: Path, tmp_path: Path) -> None:
    document, text = inspect(tiny_model)
    assert document["kind"] == "base" and document["tied"] is True
    assert document["architecture"] == "LlamaForCausalLM"
    assert document["tokenizer"] == {
        "kind": "byte-level BPE", "tokens": 320, "added": 3, "chat_template": True,
    }  # fmt: skip
    assert verdicts(document) == {"gguf merged": True, "onnx merged": True}
    assert "tied to the embedding" in text


def test_a_base_that_nothing_can_carry(tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["MambaForCausalLM"]
    (folder / "config.json").write_text(json.dumps(config))
    document, _ = inspect(folder)
    assert set(verdicts(document).values()) == {False}
    assert all("MambaForCausalLM" in reason for reason in reasons(document).values())


def test_a_gguf_model(tiny_model: Path, tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules=["q_proj"])
    adapter = save_adapter(tiny_model, tmp_path / "mine", config)
    path = export(open_model(str(tiny_model), adapter), "gguf", "Q8_0", tmp_path / "m.gguf").path
    document, text = inspect(path)
    assert document["quantization"] == "Q8_0" and document["holds"] == "model"
    assert set(document["types"]) == {"Q8_0", "F32"}
    stored = sum(entry["bytes"] for entry in document["types"].values())
    assert 0.8 * path.stat().st_size < stored <= path.stat().st_size or stored > 50_000
    assert document["tokenizer"]["pre_tokenizer"] == "smollm"
    assert document["tokenizer"]["special_ids"]["eos"] == 2
    assert document["context_length"] == 256
    assert "adapter mine (lora)" in text.replace("\n" + " " * 18, " ")


def test_a_gguf_adapter(tiny_model: Path, tmp_path: Path) -> None:
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "k_proj"])
    adapter = save_adapter(tiny_model, tmp_path / "a", config)
    path = export_adapter(str(tiny_model), [adapter], "gguf", None, tmp_path / "a.gguf").path
    document, text = inspect(path)
    assert document["holds"] == "adapter"
    assert document["adapter"] == {
        "type": "lora", "alpha": 6.0, "ranks": [4], "tensors_changed": 4,
    }  # fmt: skip
    assert "lora adapter: 4 tensors, rank 4, alpha 6" in text


def test_an_onnx_folder(tiny_model: Path) -> None:
    pytest.importorskip("onnxruntime_genai")
    artifact = exported(tiny_model, "int4")
    document, text = inspect(artifact.path)
    assert document["kind"] == "onnx" and document["quantization"] == "int4"
    assert document["kv_heads"] == 2 and document["kv_cache"]["head_size"] == 16
    assert 2 in document["stop_ids"]
    assert document["files"][document["graph"]] > 0
    assert "int4" in text


@pytest.mark.parametrize("case", ["missing", "empty", "damaged", "text"])
def test_what_is_none_of_these(case: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    if case == "empty":
        path.mkdir()
    elif case == "damaged":
        path.mkdir()
        (path / "genai_config.json").write_text('{"model": {}}')
    elif case == "text":
        path.write_text("hello")
    result = CliRunner().invoke(cli, ["inspect", str(path)])
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1


def test_nothing_heavy_is_loaded(tiny_model: Path, tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules=["q_proj"])
    adapter = save_adapter(tiny_model, tmp_path / "a", config)
    program = (
        "import sys; from edgeadapt.inspect import inspect_path;"
        f"inspect_path({str(adapter)!r}); print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    allowed = {"tokenizers", "jinja2"}  # what reads the vocabulary
    assert not set(done.stdout.split()) & (set(HEAVY) - allowed)
