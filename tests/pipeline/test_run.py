"""A whole run on a tiny model: every stage for real, in seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from transformers import AutoModelForCausalLM

from edgeadapt.artifact import open_artifact
from edgeadapt.cli import cli
from edgeadapt.errors import InputError
from edgeadapt.export import export, open_model
from edgeadapt.pipeline import run_recipe, stages
from edgeadapt.pipeline.inputs import adapted, find_inputs
from edgeadapt.pipeline.run import model_to_be
from edgeadapt.pipeline.workspace import StageResult, Workspace
from edgeadapt.recipe import Recipe, parse_recipe
from edgeadapt.training import bottleneck, inserted
from tests.questions import write_questions
from tests.tiny import save_llama

pytest.importorskip("llama_cpp")
pytest.importorskip("onnxruntime_genai")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    save_llama(folder / "base", hidden=64, layers=2)
    write_questions(folder, train=12, held=4)
    return folder


def recipe_of(folder: Path, **changes: Any) -> Recipe:
    import yaml

    values = {
        "name": "tiny",
        "base": str(folder / "base"),
        "data": {"train": str(folder / "train.jsonl"), "held_out": str(folder / "held.jsonl")},
        "train": {"method": "lora", "r": 4, "max_steps": 4, "learning_rate": 0.01},
        "export": [
            {"format": "gguf", "quantization": "Q8_0"},
            {"format": "onnx", "quantization": "fp32"},
        ],
        "evaluate": {"answer_tokens": 4},
        "gates": {"min_retention": None},  # a few steps change next to nothing
        "bench": {"prompt_tokens": 8, "decode_tokens": 4, "repetitions": 2, "threads": 1},
    }
    return parse_recipe(yaml.safe_dump(values | changes), "test")


@pytest.fixture(scope="module")
def finished(workplace: Path) -> tuple[Recipe, Path, dict[str, Any]]:
    recipe = recipe_of(workplace)
    document = run_recipe(recipe, workplace / "runs/tiny").document()
    return recipe, workplace / "runs/tiny", document


def test_a_run_plans_for_the_model_as_it_will_be(workplace: Path, tmp_path: Path) -> None:
    """And not as it is before training: an artifact that does not fit would be made."""
    base = AutoModelForCausalLM.from_pretrained(workplace / "base")
    bottleneck.attach(base, workplace / "base", 300, seed=0)
    inserted.save(base, tmp_path / "adapter", base="base")
    trained = open_model(str(workplace / "base"), tmp_path / "adapter").source
    recipe = recipe_of(workplace, train={"method": "adapter", "width": 300, "max_steps": 1})
    planned = model_to_be(recipe, None).source
    assert planned.config == trained.config
    assert planned.tensors() == trained.tensors()
    plain = model_to_be(recipe_of(workplace), None).source
    assert plain.tensors() == open_model(str(workplace / "base")).source.tensors()


@pytest.mark.e2e
def test_a_bottleneck_goes_the_whole_way(workplace: Path) -> None:
    train = {"method": "adapter", "width": 32, "max_steps": 4, "learning_rate": 0.01}
    recipe = recipe_of(workplace, name="wider", train=train)
    document = run_recipe(recipe, workplace / "runs/wider").document()
    assert {a["format"] for a in document["artifacts"]} == {"gguf", "onnx"}
    for artifact in document["artifacts"]:
        assert open_artifact(Path(artifact["path"])).lineage["adapter"]["method"] == "adapter"
        for judged in artifact["fidelity"].values():
            assert judged["fidelity"]["mean_kl"]["value"] < 0.05
    figures = document["perplexity"]
    assert figures["live"]["perplexity"] == pytest.approx(figures["merged"]["perplexity"], rel=1e-4)
    assert figures["merged"]["perplexity"] < figures["base"]["perplexity"]


def test_a_prefix_is_refused_before_any_work(workplace: Path, tmp_path: Path) -> None:
    for method in ("prefix", "prompt"):
        with pytest.raises(InputError, match=f"{method} changes no weight.*adapter-mode separate"):
            recipe_of(workplace, train={"method": method, "max_steps": 1})
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "PREFIX_TUNING"}')
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    recipe = recipe_of(workplace, train=None, adapter=str(tmp_path))
    with pytest.raises(InputError, match=r"prefix_tuning in .* changes no weight"):
        find_inputs(recipe)


def test_every_figure_is_in_run_json(finished: tuple[Recipe, Path, dict[str, Any]]) -> None:
    _, root, document = finished
    stored = json.loads((root / "run.json").read_text())
    assert stored == json.loads(json.dumps(document))
    assert {"base", "adapter", "artifacts", "measurements", "perplexity"} <= set(stored)
    for artifact in stored["artifacts"]:
        opened = open_artifact(Path(artifact["path"]))
        assert opened.sha256() == artifact["sha256"]
        assert (opened.format, opened.quantization) == (
            artifact["format"], artifact["quantization"],
        )  # fmt: skip
    runtimes = {row["runtime"]["name"] for row in stored["measurements"]}
    assert runtimes == {"llama-cpp", "ort-genai", "onnxruntime", "torch"}


def test_float_artifacts_score_as_the_merged_model(
    finished: tuple[Recipe, Path, dict[str, Any]],
) -> None:
    figures = finished[2]["perplexity"]
    assert figures["merged"]["perplexity"] < figures["base"]["perplexity"]
    assert figures["live"]["perplexity"] == pytest.approx(figures["merged"]["perplexity"], rel=1e-4)
    for row in figures["artifacts"]:
        tolerance = 1e-3 if row["quantization"] == "fp32" else 5e-2
        expected = figures["merged"]["perplexity"]
        assert row["perplexity"] == pytest.approx(expected, rel=tolerance), row["runtime"]


def test_each_artifact_is_measured_against_the_merged_model(
    finished: tuple[Recipe, Path, dict[str, Any]],
) -> None:
    for artifact in finished[2]["artifacts"]:
        for runtime, judged in artifact["fidelity"].items():
            fidelity, kept = judged["fidelity"], judged["retention"]
            assert judged["gates"], runtime
            assert 0 <= fidelity["mean_kl"]["value"] < 0.05
            assert fidelity["tokens"] == finished[2]["perplexity"]["merged"]["tokens"]
            assert kept["effect"]["float_base"]["value"] == pytest.approx(1, abs=0.5)
            assert (kept["bits_kl"] is None) == (artifact["quantization"] == "fp32")


def test_every_measurement_has_its_prediction_and_every_gguf_its_error(
    finished: tuple[Recipe, Path, dict[str, Any]],
) -> None:
    document = finished[2]
    told = [(p["quantization"], p["runtime"]) for p in document["predictions"] if p["measured"]]
    assert sorted(told) == sorted(
        (m["artifact"]["quantization"], m["runtime"]["name"])
        for m in document["measurements"]
        if m["artifact"]["format"] != "hf"
    )
    for prediction in document["predictions"]:
        speed = prediction["decode_tps"]
        assert 0 < speed["low"] < speed["median"] < speed["high"]
        assert prediction["memory_bytes"] > 0
    for artifact in document["artifacts"]:
        assert bool(artifact["weights"]) == (artifact["format"] == "gguf")


def test_a_failed_gate_is_told_and_ends_with_1(
    finished: tuple[Recipe, Path, dict[str, Any]], workplace: Path, tmp_path: Path
) -> None:
    import yaml

    values = finished[0].model_dump(mode="json", exclude_defaults=True)
    path = tmp_path / "strict.yaml"
    path.write_text(yaml.safe_dump(values | {"gates": {"max_kl": 1e-12}}))
    runs = str(workplace / "runs")
    result = CliRunner().invoke(cli, ["run", str(path), "--runs", runs, "--json", "-q"])
    assert result.exit_code == 1, result.output
    document = json.loads(result.stdout)
    assert all(stage["reused"] for stage in document["stages"])  # only the judgement is new
    first = document["artifacts"][0]["fidelity"]["llama-cpp"]
    assert first["failed_gates"] == ["max_kl"] and first["next_better"] == "F16"
    assert "tiny-Q8_0.gguf on llama-cpp failed max_kl" in result.stderr
    assert "the next better quantization is F16" in result.stderr
    assert "max_kl" in (workplace / "runs/tiny/report.md").read_text()


def test_a_second_run_does_nothing(finished: tuple[Recipe, Path, dict[str, Any]]) -> None:
    recipe, root, document = finished
    artifacts = {a["path"]: Path(a["path"]).stat().st_mtime_ns for a in document["artifacts"]}
    again = run_recipe(recipe, root).document()
    assert all(stage["reused"] for stage in again["stages"])
    assert again["perplexity"] == document["perplexity"]
    assert all(Path(path).stat().st_mtime_ns == time for path, time in artifacts.items())


def test_reports_hold_the_figures(finished: tuple[Recipe, Path, dict[str, Any]]) -> None:
    _, root, document = finished
    for name in ("report.md", "report.html"):
        text = (root / name).read_text()
        assert f"{document['perplexity']['base']['perplexity']:.2f}" in text
        assert "Q8_0" in text and "ort-genai" in text
        assert "What is held 0?" in text


def test_types_chosen_for_a_size(
    finished: tuple[Recipe, Path, dict[str, Any]], workplace: Path
) -> None:
    recipe = recipe_of(
        workplace,
        name="sized",
        train=None,
        adapter=finished[2]["adapter"]["path"],
        export=[{"format": "gguf", "max_size": "85 KiB"}],
        bench={"prompt_tokens": 8, "decode_tokens": 4, "repetitions": 1, "reference": False},
    )
    document = run_recipe(recipe, workplace / "runs/sized").document()
    (artifact,) = document["artifacts"]
    assert artifact["quantization"] == "mixed-85KiB"
    assert artifact["bytes"] <= 85 * 1024
    assert artifact["lineage"]["allocation"]["data"]["name"] == "train.jsonl"
    assert artifact["fidelity"]["llama-cpp"]["retention"]["beyond_bits"] is not None
    again = run_recipe(recipe, workplace / "runs/sized").document()
    assert all(stage["reused"] for stage in again["stages"])
    tiny = recipe.model_copy(
        update={"export": (recipe.export[0].model_copy(update={"max_size": "1KiB"}),)}
    )
    with pytest.raises(InputError, match="smallest file"):
        run_recipe(tiny, workplace / "runs/too-small")


def test_an_export_interrupted_after_its_artifact_lacks_nothing(
    finished: tuple[Recipe, Path, dict[str, Any]],
    workplace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inputs = find_inputs(recipe_of(workplace, train=None, adapter=finished[2]["adapter"]["path"]))
    recipe = recipe_of(workplace, export=[{"format": "gguf", "max_size": "85 KiB"}])
    model = adapted(Path(finished[2]["adapter"]["path"]))

    def export_once() -> StageResult:
        return stages.export_stage(
            Workspace(tmp_path, resume=True), recipe, inputs, model,
            open_model(recipe.base, model.adapter), "gguf", "mixed", max_size="85 KiB",
        )[1]  # fmt: skip

    def interrupted(*arguments: Any, **options: Any) -> None:
        export(*arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stages, "export", interrupted)
        export_once()
    folder = export_once().folder
    assert {"tiny-mixed.gguf", "allocation.json", "parity.json"} < {
        path.name for path in folder.iterdir()
    }


def test_a_given_adapter_needs_no_training(
    finished: tuple[Recipe, Path, dict[str, Any]], workplace: Path
) -> None:
    _, _, document = finished
    recipe = recipe_of(
        workplace,
        name="given",
        train=None,
        data={"held_out": str(workplace / "held.jsonl")},
        adapter=document["adapter"]["path"],
        export=[{"format": "gguf", "quantization": "Q8_0"}],
        bench={"prompt_tokens": 8, "decode_tokens": 4, "repetitions": 1, "reference": False},
    )
    given = run_recipe(recipe, workplace / "runs/given").document()
    assert given["artifacts"][0]["sha256"] == document["artifacts"][0]["sha256"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base": "/nowhere/model"}, "does not exist"),
        ({"data": {"train": "/nowhere.jsonl"}}, "does not exist"),
        ({"train": None, "adapter": "/nowhere"}, "does not exist"),
        ({"export": [{"device": "raspberry-pi-55"}]}, "raspberry-pi-5"),
        ({"export": [{"format": "gguf", "quantization": "int4"}]}, "Q4_K_M"),
        ({"export": [{"format": "coreml", "quantization": "int4"}]}, "gguf"),
    ],
)
def test_bad_recipes_fail_before_any_work(
    changes: dict[str, Any], words: str, workplace: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=words):
        run_recipe(recipe_of(workplace, **changes), tmp_path / "runs/x")
    assert not (tmp_path / "runs").exists()


def test_a_malformed_row_is_named_before_any_work(workplace: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n')
    data = {"train": str(rows), "held_out": str(workplace / "held.jsonl")}
    with pytest.raises(InputError, match="line 2: field 'completion'"):
        run_recipe(recipe_of(workplace, data=data), tmp_path / "runs/x")
    assert not (tmp_path / "runs").exists()


def test_its_bundle_says_the_same_on_every_runtime(
    finished: tuple[Recipe, Path, dict[str, Any]], tmp_path: Path
) -> None:
    from edgeadapt.bundle.make import BundleSettings, make_bundle
    from edgeadapt.bundle.verify import VerifySettings, verify_bundle

    _, root, document = finished
    record = make_bundle(root, tmp_path / "bundle", BundleSettings(force=True))
    assert len(record["variants"]) == len(document["artifacts"]) == 2
    found = verify_bundle(tmp_path / "bundle", VerifySettings(run=True))
    assert {(row["variant"], row["runtime"]) for row in found["replayed"]} == {
        ("gguf-Q8_0", "llama-cpp"), ("onnx-fp32", "ort-genai"), ("onnx-fp32", "onnxruntime"),
    }  # fmt: skip
    alone = subprocess.run(
        [sys.executable, "-I", "selftest.py"],
        cwd=tmp_path / "bundle", capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert alone.returncode == 0 and "on ort-genai" in alone.stdout, alone.stdout + alone.stderr
    for example in ("gguf-Q8_0/llama_cpp_python.py", "onnx-fp32/onnxruntime-genai.py"):
        done = subprocess.run(
            [sys.executable, f"loading/{example}"],
            cwd=tmp_path / "bundle", capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, f"{example}: {done.stderr}"
    manifest = json.loads((tmp_path / "bundle/manifest.json").read_text())
    assert manifest["adapters"][0]["sha256"] == document["adapter"]["sha256"]
    assert all(variant["measurements"] for variant in manifest["variants"])
    assert manifest["tools"]["torch"]
