"""Text that is treated otherwise than by the original is found, whatever the cause."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from edgeadapt.artifact import Artifact
from edgeadapt.cli import cli
from edgeadapt.errors import GateFailure
from edgeadapt.export import export, open_model
from edgeadapt.fidelity import parity
from edgeadapt.fidelity.parity import ParityGate, ParityReport, check_parity
from edgeadapt.fidelity.parity_jobs import run_original
from edgeadapt.worker import run_job
from tests.converters.gguf.test_vocab import bpe_record, model_with
from tests.onnx_folders import exported

pytest.importorskip("llama_cpp")
pytest.importorskip("transformers")

Fault = Callable[[Path], None]

WITH_BOS = (
    "{{ bos_token }}{% for m in messages %}<|user|>{{ m['content'] }}{{ eos_token }}{% endfor %}"
)


@pytest.fixture(scope="module", autouse=True)
def one_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The original tokenizer is asked once for this file, not once for each test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEADAPT_CACHE", str(tmp_path_factory.mktemp("parity-cache")))
        yield


@pytest.fixture(autouse=True)
def own_cache(one_cache: None) -> None:
    """In place of the cache that every test has to itself."""


def edit(path: Path, change: Callable[[Any], None]) -> None:
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def no_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    edit(folder / "tokenizer_config.json", lambda record: record.pop("chat_template"))


def bos_twice_in_template(folder: Path) -> None:
    doubled = "{{ bos_token }}"

    def change(record: Any) -> None:
        record["chat_template"] = doubled + record["chat_template"]

    beside = folder / "chat_template.jinja"  # where ONNX's builder has put a copy
    if beside.is_file():
        beside.write_text(doubled + beside.read_text())
    edit(folder / "tokenizer_config.json", change)


def bos_before_text(folder: Path) -> None:
    special = {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}

    def change(record: Any) -> None:
        record["post_processor"] = {
            "type": "TemplateProcessing", "single": [special, text], "pair": [special, text],
            "special_tokens": {
                "<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}
            },
        }  # fmt: skip

    edit(folder / "tokenizer.json", change)


def swapped(folder: Path) -> None:
    """Two tokens that no word of the conversations needs, but that the vocabulary has."""

    def change(record: Any) -> None:
        vocabulary = record["model"]["vocab"]
        a, b = list(vocabulary)[30], list(vocabulary)[31]
        vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]

    edit(folder / "tokenizer.json", change)


def no_added_tokens(folder: Path) -> None:
    edit(folder / "tokenizer.json", lambda record: record["added_tokens"].clear())


def other_stop(folder: Path) -> None:
    def change(record: Any) -> None:
        record["eos_token"] = "<|endoftext|>"

    edit(folder / "tokenizer_config.json", change)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 0}))
    if (folder / "genai_config.json").is_file():
        edit(folder / "genai_config.json", lambda r: r["model"].update(eos_token_id=0))


FAULTS: dict[str, tuple[Fault, set[str]]] = {
    "chat template removed": (no_template, {"text"}),
    "BOS twice in the template": (bos_twice_in_template, {"text", "double-bos"}),
    "BOS put before every text": (bos_before_text, {"tokens"}),
    "two token ids swapped": (swapped, {"tokens", "vocabulary"}),
    "no added tokens": (no_added_tokens, {"tokens"}),
    "other stop token": (other_stop, {"eos"}),
}


def kinds(report: ParityReport, runtime: str) -> set[str]:
    return {mismatch.kind for mismatch in report.mismatches[runtime]}


def broken(folder: Path, fault: Fault, place: Path) -> Path:
    copy = place / "broken"
    shutil.copytree(folder, copy)
    fault(copy)
    return copy


def test_a_good_gguf_passes(tiny_model: Path, tiny_gguf: Path) -> None:
    report = check_parity(Artifact(tiny_gguf, "gguf", "F32"), tiny_model)
    assert report.mismatches == {"llama-cpp": []}
    assert report.cases > 50
    record = report.record()
    assert (record["gate"], record["checked"], record["passed"]) == ("parity", True, True)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_a_gguf_stops_the_export(name: str, tiny_model: Path, tmp_path: Path) -> None:
    fault, expected = FAULTS[name]
    model = replace(open_model(str(tiny_model)), folder=broken(tiny_model, fault, tmp_path))
    out = tmp_path / "out/model.gguf"
    gate = ParityGate(tiny_model)
    with pytest.raises(GateFailure) as caught:
        export(model, "gguf", "F16", out, check=gate)
    assert expected <= kinds(gate.report, "llama-cpp")
    assert caught.value.record is not None
    assert caught.value.record["failed_gates"] == ["parity"]
    assert list(out.parent.iterdir()) == []


def test_a_token_swapped_in_the_file_itself_is_shown_with_its_text(
    tiny_model: Path, tiny_gguf: Path, tmp_path: Path
) -> None:
    vocabulary = json.loads((tiny_model / "tokenizer.json").read_text())["model"]["vocab"]
    pair = [token for token in vocabulary if len(token) == 2 and token.isascii()][:2]
    data = tiny_gguf.read_bytes()
    first, second = ((2).to_bytes(8, "little") + token.encode() for token in pair)
    assert data.count(first) == data.count(second) == 1
    data = data.replace(first, b"\0" * 10).replace(second, first).replace(b"\0" * 10, second, 1)
    path = tmp_path / "swapped.gguf"
    path.write_bytes(data)
    found = check_parity(Artifact(path, "gguf", "F32"), tiny_model).mismatches["llama-cpp"]
    shown = [mismatch.message for mismatch in found if mismatch.kind == "vocabulary"]
    assert shown
    assert all(repr(token) in shown[0] for token in pair)


@pytest.fixture(scope="module")
def onnx(tiny_model: Path) -> Path:
    pytest.importorskip("onnxruntime_genai")
    return exported(tiny_model, "fp32").path


def test_a_good_onnx_folder_passes(tiny_model: Path, onnx: Path) -> None:
    report = check_parity(Artifact(onnx, "onnx", "fp32"), tiny_model)
    assert report.mismatches == {"ort-genai": [], "onnxruntime": []}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_an_onnx_folder_is_found(
    name: str, tiny_model: Path, onnx: Path, tmp_path: Path
) -> None:
    fault, expected = FAULTS[name]
    copy = Artifact(broken(onnx, fault, tmp_path), "onnx", "fp32")
    report = check_parity(copy, tiny_model)
    assert not report.passed
    assert expected & kinds(report, "onnxruntime")
    assert kinds(report, "ort-genai")


@pytest.mark.parametrize("adds_bos", [False, True])
def test_sentencepiece_with_bos_in_the_template(adds_bos: bool, tmp_path: Path) -> None:
    made = bpe_record()
    if adds_bos:
        begins = {"SpecialToken": {"id": "<s>", "type_id": 0}}
        text = {"Sequence": {"id": "A", "type_id": 0}}
        made["post_processor"] = {
            "type": "TemplateProcessing", "single": [begins, text], "pair": [begins, text],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        }  # fmt: skip
    folder = model_with(tmp_path / "model", made)

    def change(config: Any) -> None:
        config |= {
            "chat_template": WITH_BOS, "add_bos_token": adds_bos,
            "tokenizer_class": "PreTrainedTokenizerFast",
        }  # fmt: skip

    edit(folder / "tokenizer_config.json", change)
    gate = ParityGate(folder)
    export(open_model(str(folder)), "gguf", "F16", tmp_path / "model.gguf", check=gate)
    assert gate.report.mismatches == {"llama-cpp": []}


def test_export_says_which_gate_failed(tiny_model: Path, tmp_path: Path) -> None:
    folder = broken(tiny_model, bos_twice_in_template, tmp_path)
    out = tmp_path / "out/model.gguf"
    arguments = ["export", "--base", folder, "--format", "gguf", "--quant", "F16", "--out", out]
    result = CliRunner().invoke(cli, [str(a) for a in arguments] + ["--json", "--parity"])
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["failed_gates"] == ["parity"]
    assert not document["passed"]
    assert "two BOS tokens" in document["failures"][0]
    assert list(out.parent.iterdir()) == []
    unasked = CliRunner().invoke(cli, [*(str(a) for a in arguments), "--json"])
    assert unasked.exit_code == 1
    assert list(out.parent.iterdir()) == []
    again = CliRunner().invoke(cli, [*(str(a) for a in arguments), "--json", "--no-parity"])
    assert again.exit_code == 0, again.stderr
    assert json.loads(again.stdout)["parity"]["checked"] is False
    assert out.is_file()


def readers_asked(monkeypatch: pytest.MonkeyPatch, cache: Path) -> list[str]:
    """A list that fills with what is asked of the original from now on, nothing being cached."""
    asked: list[str] = []

    def spy(kind: str, payload: dict[str, Any]) -> dict[str, Any]:
        if kind == "parity-original":
            asked.append(payload["reader"])
        return run_job(kind, payload)

    monkeypatch.setenv("EDGEADAPT_CACHE", str(cache))
    monkeypatch.setattr(parity, "run_job", spy)
    return asked


def test_the_quick_check_asks_transformers_only_where_something_differs(
    tiny_model: Path, tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = readers_asked(monkeypatch, tmp_path / "cache")
    good = Artifact(tiny_gguf, "gguf", "F32")
    assert check_parity(good, tiny_model, quick=True).mismatches == {"llama-cpp": []}
    assert asked == ["tokenizers"]
    folder = broken(tiny_model, swapped, tmp_path)
    bad = export(replace(open_model(str(tiny_model)), folder=folder), "gguf", "F16", tmp_path / "b")
    assert "tokens" in kinds(check_parity(bad, tiny_model, quick=True), "llama-cpp")
    assert asked == ["tokenizers", "transformers"]
    assert check_parity(good, tiny_model, quick=True).passed
    assert asked == ["tokenizers", "transformers"]


def test_transformers_has_the_last_word(
    tiny_model: Path, tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An added token that only tokenizer_config.json names is one for transformers alone."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    record = json.loads((folder / "tokenizer.json").read_text())
    last = record["added_tokens"].pop()
    (folder / "tokenizer.json").write_text(json.dumps(record))
    known = {str(last["id"]): {k: v for k, v in last.items() if k != "id"}}
    edit(folder / "tokenizer_config.json", lambda r: r.update(added_tokens_decoder=known))
    asked = readers_asked(monkeypatch, tmp_path / "cache")
    report = check_parity(Artifact(tiny_gguf, "gguf", "F32"), folder, quick=True)
    assert asked == ["tokenizers", "transformers"]
    assert report.passed, report.record()


@pytest.mark.parametrize("template", [None, WITH_BOS])
def test_tokenizers_answers_as_transformers_does(
    template: str | None, tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    if template is not None:
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        edit(folder / "tokenizer_config.json", lambda r: r.update(chat_template=template))
    quick, exact = (
        run_original({"folder": str(folder), "reader": reader}, lambda _: None)
        for reader in ("tokenizers", "transformers")
    )
    assert quick == exact


def test_without_an_engine_it_says_that_nothing_was_checked(tiny_model: Path) -> None:
    report = check_parity(Artifact(tiny_model, "unheard-of", "x"), tiny_model)
    assert not report.checked
    assert "not checked" in report.verdict().note


def test_evaluate_names_the_gate(tiny_model: Path, tmp_path: Path) -> None:
    model = replace(open_model(str(tiny_model)), folder=broken(tiny_model, no_template, tmp_path))
    export(model, "gguf", "F32", tmp_path / "bad.gguf")
    rows = [{"prompt": f"What is {i}?", "completion": f"{i} dogs."} for i in range(3)]
    (tmp_path / "held.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    arguments = [
        "evaluate", str(tmp_path / "bad.gguf"), "--base", str(tiny_model),
        "--data", str(tmp_path / "held.jsonl"), "--json",
    ]  # fmt: skip
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 1, result.stderr
    document = json.loads(result.stdout)
    assert document["failed_gates"] == ["parity"]
    assert not document["artifacts"][0]["parity"]["passed"]
    assert "chat template" in result.stderr
