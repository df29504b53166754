"""The weights to merge into are chosen by measuring, and what is chosen has to hold up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from peft import LoraConfig

from edgeadapt.adapters import read_spec
from edgeadapt.cli import cli
from edgeadapt.errors import GateFailure, InputError
from edgeadapt.fidelity import merge_base
from edgeadapt.fidelity.gates import Verdict
from edgeadapt.fidelity.merge_base import (
    GATE,
    MergeChoice,
    MergeSettings,
    choose_merge_base,
)
from edgeadapt.fidelity.metrics import mean
from edgeadapt.fidelity.references import _LOG_PROBS, Reference
from edgeadapt.fidelity.task import Task
from edgeadapt.fidelity.text import held_out_text
from edgeadapt.tokenizer import ModelTokenizer
from edgeadapt.training.quantization import detect_nf4_settings
from tests.adapters.test_merged import save_adapter

pytest.importorskip("bitsandbytes")

ROUNDING = {"float32": 1e-6, "bfloat16": 2e-4}[detect_nf4_settings().compute_dtype]
"""The live model computes in what is fast on this CPU."""


@pytest.fixture(scope="module", autouse=True)
def one_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """References are computed once for this file, not once for each test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEADAPT_CACHE", str(tmp_path_factory.mktemp("merge-cache")))
        yield


@pytest.fixture(autouse=True)
def own_cache(one_cache: None) -> None:
    """In place of the cache that every test has to itself."""


@pytest.fixture(scope="module")
def place(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter as QLoRA leaves it, one with no record, and held-out data."""
    folder = tmp_path_factory.mktemp("merge")
    lora = LoraConfig(r=4, target_modules=["q_proj", "down_proj"])
    for name, record in (("qlora", {"quantization": "nf4"}), ("other", None),
                         ("lora", {"quantization": "float32"})):  # fmt: skip
        save_adapter(tiny_model, folder / name, lora)
        if record is not None:
            (folder / name / "edgeadapt.json").write_text(json.dumps(record))
    rows = [{"prompt": f"How many are {i}?", "completion": f"{i} dogs jump."} for i in range(6)]
    (folder / "held.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


def merge(tiny_model: Path, adapter: Path, out: Path, *more: object) -> Result:
    arguments = ["merge", "--base", tiny_model, "--adapter", adapter, "--out", out, "--json", *more]
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_both_are_measured_and_the_better_is_kept(
    tiny_model: Path, place: Path, tmp_path: Path
) -> None:
    result = merge(
        tiny_model, place / "qlora", tmp_path / "out", "--held-out", place / "held.jsonl",
        "--max-merge-ratio", 2,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    merged = json.loads(result.stdout)["lineage"]["merge"]
    figures = merged["measured"]
    perplexity = {name: figures[name]["perplexity"]["value"] for name in ("original", "quantized")}
    assert merged["asked"] == "auto"
    assert merged["onto"] == min(perplexity, key=lambda name: perplexity[name])
    assert merged["onto"] in merged["reason"] or "perplexity" in merged["reason"]
    assert perplexity["original"] != perplexity["quantized"]
    assert abs(figures["quantized"]["mean_kl"]["value"]) < ROUNDING  # it is the live model
    assert figures["original"]["mean_kl"]["value"] > 1e-4
    assert figures["quantized"]["ratio_to_live"]["value"] == pytest.approx(1, abs=10 * ROUNDING)
    assert figures["original_minus_quantized"]["standard_error"] > 0
    manifest = json.loads((tmp_path / "out/edgeadapt.json").read_text())
    assert manifest["lineage"]["merge"] == merged


def test_a_merge_that_is_worse_than_the_live_model_is_refused(
    tiny_model: Path, place: Path, tmp_path: Path
) -> None:
    result = merge(
        tiny_model, place / "qlora", tmp_path / "out", "--held-out", place / "held.jsonl",
        "--merge-onto", "quantized", "--max-merge-ratio", 0.9,
    )  # fmt: skip
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["failed_gates"] == [GATE]
    assert document["gates"][0]["figure"] == pytest.approx(1, abs=10 * ROUNDING)
    assert document["merge"]["onto"] == "quantized"
    assert "--merge-onto original" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("onto", ["auto", "original"])
def test_a_live_model_that_is_computed_wrongly_is_noticed(
    tiny_model: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, onto: str
) -> None:
    """As a kernel that reads the magnitudes of other blocks does."""
    real = merge_base.find_references

    def spoiled(*args: Any, **options: Any) -> Any:
        references = real(*args, **options)
        live = references["live"]
        np.save(tmp_path / _LOG_PROBS, np.roll(live.log_probs, 1, axis=1) * 20)
        scores = replace(live.scores, nll=live.scores.nll + 7)
        return references | {"live": Reference(tmp_path, scores)}

    monkeypatch.setattr(merge_base, "find_references", spoiled)
    result = merge(
        tiny_model, place / "qlora", tmp_path / "out", "--held-out", place / "held.jsonl",
        "--merge-onto", onto, "--max-merge-ratio", 2,
    )  # fmt: skip
    assert result.exit_code == 2
    assert "computes wrongly on this machine" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("adapter", "why"),
    [("qlora", "no held-out data"), ("other", "no record"), ("lora", "floating point")],
)
def test_what_cannot_be_measured_goes_onto_the_original_and_says_why(
    adapter: str, why: str, tiny_model: Path, place: Path, tmp_path: Path
) -> None:
    result = merge(tiny_model, place / adapter, tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    merged = json.loads(result.stdout)["lineage"]["merge"]
    assert merged["onto"] == "original"
    assert merged["measured"] is None
    assert why in merged["reason"]


def test_what_another_tool_trained_on_can_be_stated(
    tiny_model: Path, place: Path, tmp_path: Path
) -> None:
    asked = ("--merge-onto", "quantized")
    unknown = merge(tiny_model, place / "other", tmp_path / "out", *asked)
    assert unknown.exit_code == 2
    assert "--trained-on" in unknown.stderr
    told = merge(
        tiny_model, place / "other", tmp_path / "out", *asked, "--trained-on", "nf4-double"
    )
    assert told.exit_code == 0, told.stderr
    merged = json.loads(told.stdout)["lineage"]["merge"]
    assert merged["held"]["format"] == "nf4-double"
    contradicted = merge(tiny_model, place / "lora", tmp_path / "x", *asked)
    assert contradicted.exit_code == 2
    assert "--merge-onto original" in contradicted.stderr


def test_several_adapters_are_not_measured(tiny_model: Path, place: Path) -> None:
    specs = [read_spec(place / "qlora"), read_spec(place / "qlora")]
    choice = choose_merge_base(tiny_model, specs, MergeSettings(), [])
    assert (choice.onto, choice.verdict) == ("original", None)
    assert "several adapters" in choice.reason
    with pytest.raises(InputError):
        choose_merge_base(tiny_model, [read_spec(place / "lora")], MergeSettings("quantized"), None)


def test_a_choice_survives_json() -> None:
    verdict = Verdict(GATE, 1.2, 1.02, passed=False)
    choice = MergeChoice("original", "auto", "because", {"tokens": 3}, verdict)
    read = MergeChoice.from_document(json.loads(json.dumps(choice.document())))
    assert read == choice
    with pytest.raises(GateFailure, match="worse than the live"):
        read.check()
    MergeChoice("original", "auto", "because").check()


def test_the_users_task_decides_where_it_can_tell(
    tiny_model: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers of a random model say nothing, so each merge is given a score of its own."""
    seen = []

    def scored(onto: str, number: int) -> float:
        return {"original": 0.0, "quantized": 1.0}[onto] + number % 2 / 10

    real = merge_base.measure_task

    def measured(path: Path, *args: Any, label: str, **options: Any) -> Any:
        result = real(path, *args, label=label, **options)
        onto = label.split()[-2]
        seen.append(onto)
        values = np.array([scored(onto, i) for i in range(len(result.values))])
        return replace(result, values=values, score=mean(values, np.arange(len(values))))

    monkeypatch.setattr(merge_base, "measure_task", measured)
    spec = read_spec(place / "qlora")
    held_out = held_out_text(place / "held.jsonl", ModelTokenizer.from_folder(tiny_model))
    task = Task("f1", place / "held.jsonl", 4, 4)
    settings = MergeSettings(max_ratio=None)
    choice = choose_merge_base(tiny_model, [spec], settings, held_out, task)
    assert seen == ["original", "quantized"]
    assert choice.onto == "quantized" and choice.reason.startswith("f1 1.050 against 0.050")
    assert choice.figures is not None
    assert choice.figures["task_original_minus_quantized"]["value"] == pytest.approx(-1)
    monkeypatch.setattr(merge_base, "measure_task", real)  # no difference: perplexity decides
    plain = choose_merge_base(tiny_model, [spec], settings, held_out, task)
    assert plain.figures is not None and "task" in plain.figures["original"]
    assert "perplexity" in plain.reason
