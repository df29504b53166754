"""A whole comparison on a tiny model, by the command line: every method for real, in a minute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from edgeadapt.cli import cli
from edgeadapt.comparison import run, trial
from edgeadapt.comparison.recipe import load_comparison
from edgeadapt.errors import RuntimeFailure
from tests.questions import write_questions
from tests.tiny import save_llama

pytest.importorskip("llama_cpp")
pytest.importorskip("bm25s")

METHODS = [
    "none",
    {"method": "few-shot", "examples": 1},
    {"method": "rag", "passages": 1},
    {"method": "prefix", "train": {"virtual_tokens": 4}},
    {"method": "adapter", "train": {"width": 32}},
    {"method": "lora", "ship": ["merged", "separate"]},
    "full",
]
NAMES = ["none", "few-shot", "rag", "prefix", "adapter", "lora, merged", "lora, separate", "full"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    save_llama(folder / "base", hidden=64, layers=2)
    write_questions(folder, train=48, general=6)
    write_questions(folder, held=6, groups_of=2)
    recipe = {
        "name": "tiny",
        "base": str(folder / "base"),
        "data": {name: str(folder / f"{file}.jsonl") for name, file in (
            ("train", "train"), ("held_out", "held"), ("general", "general"),
        )},
        "train": {"max_steps": 3, "batch_size": 2},
        "methods": METHODS,
        "quantizations": ["Q8_0"],
        "devices": ["laptop-x86", "raspberry-pi-5"],
        "evaluate": {"answer_tokens": 4, "task": {"metric": "f1", "examples": 3, "max_tokens": 4}},
        "bench": {"repetitions": 1, "threads": 1},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def compare(workplace: Path, runs: str = "runs") -> dict[str, Any]:
    found = CliRunner().invoke(
        cli,
        ["compare", str(workplace / "recipe.yaml"), "--runs", str(workplace / runs), "--json"],
    )
    assert found.exit_code == 0, found.output + found.stderr
    document: dict[str, Any] = json.loads(found.stdout)
    return document


@pytest.fixture(scope="module")
def document(workplace: Path) -> dict[str, Any]:
    return compare(workplace)


def test_every_contender_is_measured_on_the_same_answers(document: dict[str, Any]) -> None:
    assert [one["name"] for one in document["contenders"]] == NAMES
    tokens = [
        entry["domain"]["tokens"] for trial in document["trials"] for entry in trial["entries"]
    ]
    assert len(tokens) == len(NAMES) and all(found == tokens[0] for found in tokens)
    assert document["questions"]["domain"]["answer_tokens"] == sum(tokens[0])


def test_questions_of_a_group_are_taken_together(document: dict[str, Any], workplace: Path) -> None:
    asked = document["questions"]
    assert (asked["domain"]["groups"], asked["general"]["groups"]) == (3, None)
    entry = document["trials"][0]["entries"][0]["domain"]
    assert (len(entry["nll"]), asked["domain"]["examples"]) == (6, 6)
    report = (workplace / "runs/tiny/report.md").read_text()
    assert "are drawn together: 3 groups (held-out)" in report
    assert "3 groups of held-out questions are too few" in report


def test_costs_are_measured_and_told_apart(document: dict[str, Any]) -> None:
    by_name = {one["name"]: one for one in document["contenders"]}
    for name in ("prefix", "adapter", "lora, merged", "full"):
        trained = by_name[name]["trained"]
        assert trained["seconds"] > 0 and trained["peak_memory"] > 50 << 20
    assert by_name["full"]["trained"]["share"] == pytest.approx(1.0)
    assert by_name["none"]["trained"] is None and by_name["rag"]["trained"] is None
    separate, merged = by_name["lora, separate"]["bytes"], by_name["lora, merged"]["bytes"]
    assert separate["update"] < merged["update"] == merged["first"] < separate["first"]
    prompts = {name: one["here"]["prompt_tokens"] for name, one in by_name.items()}
    assert prompts["few-shot"] > prompts["none"] < prompts["rag"]
    assert prompts["lora, merged"] == prompts["none"]


def test_each_device_gets_a_choice_with_its_reason(document: dict[str, Any]) -> None:
    assert [one["device"] for one in document["devices"]] == ["laptop-x86", "raspberry-pi-5"]
    for device in document["devices"]:
        assert device["choice"]["reason"] and len(device["contenders"]) == len(NAMES)


def test_what_was_measured_is_what_ships(document: dict[str, Any], workplace: Path) -> None:
    """The method's own model in torch and its artifact say the same, Q8_0's rounding apart."""
    for name in ("adapter", "lora, merged", "full"):
        one = next(one for one in document["contenders"] if one["name"] == name)
        assert one["fidelity"]["mean_kl"] < 0.01
    plain = next(t for t in document["trials"] if t["method"] == "none")["entries"][0]
    lora = next(t for t in document["trials"] if t["method"] == "lora")["entries"]
    for entry in lora:
        assert entry["domain"]["nll"] != plain["domain"]["nll"]  # it is really applied
        assert entry["task"]["values"] is not None


def test_reports_are_written(document: dict[str, Any], workplace: Path) -> None:
    root = workplace / "runs/tiny"
    assert json.loads((root / "compare.json").read_text()) == document
    for name in ("report.html", "report.md"):
        text = (root / name).read_text()
        assert all(method in text for method in NAMES)
    assert (root / "report.html").read_text().count("<svg") == 4


def test_killed_in_the_middle_it_ends_with_the_same_figures(
    document: dict[str, Any], workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, root = load_comparison(str(workplace / "recipe.yaml")), workplace / "again/tiny"
    done: list[str] = []

    def until(ground: Any, wanted: Any) -> Any:
        for one in wanted[:3]:
            done.append(one.slug)
            yield one.slug, trial.run_trial(ground, one)
        raise RuntimeFailure("the power went out")

    with pytest.raises(RuntimeFailure):
        run.compare_methods(recipe, root, execute=until)
    assert len(done) == 3 and not (root / "compare.json").exists()
    again = compare(workplace, "again")
    for one, other in zip(document["contenders"], again["contenders"], strict=True):
        assert without_times(one) == without_times(other)


def test_one_question_of_a_task_is_refused_before_any_work(workplace: Path) -> None:
    recipe = yaml.safe_load((workplace / "recipe.yaml").read_text())
    recipe["evaluate"]["task"]["examples"] = 1
    path = workplace / "one.yaml"
    path.write_text(yaml.safe_dump(recipe | {"name": "one"}))
    found = CliRunner().invoke(cli, ["compare", str(path), "--runs", str(workplace / "one")])
    assert found.exit_code == 2 and "has no margin of error" in found.stderr
    assert not list((workplace / "one/one").glob("export-*"))


def test_a_method_that_fails_is_told_and_equal_ones_are_two(workplace: Path) -> None:
    recipe = yaml.safe_load((workplace / "recipe.yaml").read_text())
    recipe["methods"] = [
        "none", "lora", {"method": "lora", "name": "twin"},
        {"method": "full", "name": "wild", "train": {"learning_rate": 1e30}},
    ]  # fmt: skip
    path = workplace / "failing.yaml"
    path.write_text(yaml.safe_dump(recipe | {"name": "failing"}))
    found = CliRunner().invoke(
        cli, ["compare", str(path), "--runs", str(workplace / "failing"), "--json"]
    )
    assert isinstance(found.exception, SystemExit), found.exception
    assert found.exit_code == 2 and "failed: wild" in found.stderr
    document = json.loads(found.stdout)
    assert [one["name"] for one in document["contenders"]] == ["none", "lora", "twin"]
    (failed,) = document["failed"]
    assert (failed["label"], failed["seed"]) == ("wild", 0) and "diverged" in failed["failed"]
    report = (workplace / "failing/failing/report.md").read_text()
    assert (
        "wild (seed 0) failed: " in report
        and "3 groups of held-out questions are too few" in report
    )
    lora, twin = (t["entries"][0] for t in document["trials"][1:3])
    assert lora["domain"] == twin["domain"]
    assert Path(twin["artifact"]["path"]).name == "twin-seed0-1-Q8_0.gguf"


def test_where_every_method_fails_the_base_is_reported_alone(workplace: Path) -> None:
    recipe = yaml.safe_load((workplace / "recipe.yaml").read_text())
    recipe["methods"] = ["none", {"method": "lora", "train": {"learning_rate": 1e30}}]
    path = workplace / "alone.yaml"
    path.write_text(yaml.safe_dump(recipe | {"name": "alone"}))
    found = CliRunner().invoke(cli, ["compare", str(path), "--runs", str(workplace / "alone")])
    assert isinstance(found.exception, SystemExit), found.exception
    assert found.exit_code == 2 and "failed: lora" in found.stderr
    assert "ship the base" in " ".join(found.stdout.split())
    assert (workplace / "alone/alone/report.html").read_text().count("<svg") == 3


def without_times(one: dict[str, Any]) -> dict[str, Any]:
    trained = one["trained"] and {
        key: value for key, value in one["trained"].items()
        if key not in ("seconds", "peak_memory", "joules")
    }  # fmt: skip
    return one | {"trained": trained, "work_s": None, "here": one["here"]["prompt_tokens"]}
