"""Sound artifacts pass the default gates, planted faults fail the one that is meant for them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from edgeadapt.adapters import AdapterChoice
from edgeadapt.artifact import Artifact
from edgeadapt.cli import cli
from edgeadapt.data.encode import Encoded
from edgeadapt.export import export, open_model
from edgeadapt.export_separate import export_adapter
from edgeadapt.fidelity.bits import TOLERATED
from edgeadapt.fidelity.evaluate import evaluate, prepare
from edgeadapt.fidelity.gates import Gates, judge, verdict_record
from edgeadapt.fidelity.models import reference_models
from edgeadapt.fidelity.text import within
from edgeadapt.merge import merge_to_folder
from edgeadapt.safetensors_io import SafetensorsSource
from tests.changed_weights import Zeroed
from tests.fidelity.conftest import LAYERS, World, save_lora


def judged(world: World, artifact: Artifact, **options: Any) -> dict[str, Any]:
    figures = evaluate(artifact, "llama-cpp", world.yardstick, threads=1, **options)
    return figures | verdict_record(judge(Gates(), figures))


@pytest.mark.parametrize("quantization", ["F32", "Q8_0"])
def test_sound_artifacts_pass(world: World, quantization: str) -> None:
    artifact = world.artifact(f"sound-{quantization}", quantization, world.adapter)
    found = judged(world, artifact)
    assert found["passed"], found["gates"]
    kept = found["retention"]
    assert kept["adapter_kl"]["value"] > 0.05
    assert kept["kl"]["float_base"]["value"] > 0.97
    assert kept["adapter"] > 0.97
    assert (kept["bits_kl"] is None) == (quantization == "F32")
    if quantization == "F32":
        assert found["fidelity"]["mean_kl"]["value"] < 1e-4
        assert kept["effect"]["float_base"]["value"] == pytest.approx(1, abs=0.01)


def test_a_merged_folder_on_torch_is_the_reference(world: World) -> None:
    model = open_model(str(world.base), world.adapter)
    artifact = merge_to_folder(model, world.folder / "merged")
    figures = evaluate(artifact, "torch", world.yardstick, threads=1)
    assert figures["fidelity"]["mean_kl"]["value"] < 1e-5
    assert figures["fidelity"]["top1"]["value"] == 1
    assert figures["retention"]["adapter"] == pytest.approx(1, abs=0.01)


def test_a_dropped_adapter_fails_retention(world: World) -> None:
    found = judged(world, world.artifact("dropped", "Q8_0", None))
    assert "min_retention" in found["failed_gates"]
    kept = found["retention"]
    assert abs(kept["effect"]["quantized_base"]["value"]) < 0.01
    assert abs(kept["kl"]["quantized_base"]["value"]) < 0.01


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("doubled", {"lora_alpha": 16.0}, "counts too much"),
        ("scale-lost", {"lora_alpha": 4.0}, "times as much as it should"),
    ],
)
def test_a_wrong_scale_fails_retention(
    world: World, name: str, config: dict[str, float], words: str
) -> None:
    artifact = world.artifact(name, "F32", world.adapter_with(f"adapter-{name}", **config))
    found = judged(world, artifact)
    failed = [gate for gate in found["gates"] if not gate["passed"]]
    assert "min_retention" in [gate["gate"] for gate in failed]
    assert words in next(gate["note"] for gate in failed if gate["gate"] == "min_retention")


def without_adapter(world: World, damage: bool, quantization: str) -> dict[str, Any]:
    """The plain base, judged as an artifact of itself."""
    plain = replace(world.yardstick, references={"base": world.yardstick.references["base"]})
    model = open_model(str(world.base))
    if damage:
        model = replace(model, source=Zeroed(model.source, LAYERS - 1))
    out = world.folder / f"plain-{damage}-{quantization}.gguf"
    artifact = export(model, "gguf", quantization, out)
    figures = evaluate(artifact, "llama-cpp", plain, threads=1)
    return figures | verdict_record(judge(Gates(), figures))


@pytest.mark.parametrize("quantization", ["F16", "Q8_0"])
def test_a_damaged_layer_is_told_from_a_loss_of_bits_without_an_adapter(
    world: World, quantization: str
) -> None:
    sound = without_adapter(world, False, quantization)
    assert sound["passed"], sound["gates"]
    if quantization == "Q8_0":  # the same bytes, so as far from the base
        excess = -(TOLERATED - 1) * sound["bits"]["kl"]["value"]
        assert sound["bits"]["excess_kl"]["value"] == pytest.approx(excess, rel=0.05)
    damaged = without_adapter(world, True, quantization)
    assert "max_excess_kl" in damaged["failed_gates"]


@pytest.mark.parametrize("weights", [(None, None), (0.7, 0.4)])
def test_several_adapters_are_one_reference(
    world: World, weights: tuple[float | None, float | None], tmp_path: Path
) -> None:
    other = save_lora(tmp_path / "other", seed=3)
    choices = [
        AdapterChoice(path, weight)
        for path, weight in zip((world.adapter, other), weights, strict=True)
    ]
    models = reference_models(world.base, choices)
    assert set(models) == {"base", "merged"}  # they were not trained together
    made = export(open_model(str(world.base), choices), "gguf", "F32", tmp_path / "both.gguf")
    yardstick = prepare(models, world.encoded, threads=1)
    figures = evaluate(made, "llama-cpp", yardstick, threads=1)
    assert figures["fidelity"]["mean_kl"]["value"] < 1e-4
    one = evaluate(made, "llama-cpp", world.yardstick, threads=1)
    assert one["fidelity"]["mean_kl"]["value"] > 1e-2


def test_an_adapter_beside_its_base_is_judged_with_it(world: World, tmp_path: Path) -> None:
    base = world.artifact("beside-base", "Q8_0", None)
    beside = export_adapter(
        str(world.base), [str(world.adapter)], "gguf", "F32", tmp_path / "a.gguf"
    ).path
    subject = ("--base", world.base, "--adapter", world.adapter, "--data", world.data)
    arguments = ["evaluate", base.path, *subject, "--json", "--gate", "parity=false", "-q"]
    found = {}
    for name, more in (("with", ("--beside", beside)), ("without", ())):
        result = CliRunner().invoke(cli, [str(a) for a in (*arguments, *more)])
        assert result.stdout, result.stderr
        (entry,) = json.loads(result.stdout)["artifacts"]
        found[name] = result.exit_code, entry["fidelity"]["llama-cpp"]
    code, figures = found["with"]
    assert code == 0
    assert figures["retention"]["kl"]["float_base"]["value"] > 0.98
    assert figures["bits"]["kl"]["value"] == pytest.approx(
        figures["fidelity"]["mean_kl"]["value"], rel=0.3
    )
    code, figures = found["without"]
    assert code == 1
    assert "min_retention" in figures["failed_gates"]
    missing = CliRunner().invoke(
        cli, [*map(str, arguments), "--beside", str(tmp_path / "none.gguf")]
    )
    assert missing.exit_code == 2
    assert "none.gguf does not exist" in missing.stderr


def test_tokens_that_the_base_lacks_are_nothing_to_it(world: World) -> None:
    size = SafetensorsSource(world.base).config["vocab_size"]
    example = world.encoded[0]
    longer = Encoded([*example.ids, size, size + 3], [*example.scored, True, False])
    assert within(world.encoded, size) is world.encoded
    (read,) = within([longer], size)
    assert read.ids == [*example.ids, 0, 0] and read.scored == longer.scored


def test_one_run_from_the_command_line(world: World, tmp_path: Path) -> None:
    good = world.artifact("cli-good", "F32", world.adapter)
    bad = world.artifact("cli-bad", "F32", None)
    result = CliRunner().invoke(
        cli,
        [
            "evaluate", str(good.path), str(bad.path), "--base", str(world.base),
            "--adapter", str(world.adapter), "--data", str(world.data), "--max-tokens", "128",
            "--device", "raspberry-pi-5", "--threads", "1", "--task", "rouge-l",
            "--task-examples", "2", "--task-tokens", "4", "--json", "-q",
        ],
    )  # fmt: skip
    assert result.exit_code == 1, result.output
    document = json.loads(result.stdout)
    assert not document["passed"] and "min_retention" in document["failed_gates"]
    first, second = (entry["fidelity"]["llama-cpp"] for entry in document["artifacts"])
    assert first["passed"] and not second["passed"]
    assert first["task"]["examples"] == 2
    assert "cli-bad.gguf on llama-cpp failed min_retention: " in "".join(document["failures"])
    assert "there is no better quantization that fits raspberry-pi-5" in result.stderr
    reference = document["reference"]
    assert reference["tokens"] == len(world.yardstick.sequences)
    merged = np.exp(world.yardstick.reference.scores.nll.mean())
    assert reference["perplexity"]["merged"]["value"] == pytest.approx(merged)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give --reference RUN"),
        (["--reference", "/nowhere"], "no run.json"),
        (["--base", "{base}"], "give --data"),
        (["--base", "{base}", "--data", "{data}", "--gate", "max_kl=-1"], "max_kl"),
        (["--base", "{base}", "--data", "{data}", "--gate", "max_loss=1"], "no such field"),
        (["--base", "{base}", "--data", "{data}", "--task", "bleu"], "rouge-l"),
        (["--base", "{base}", "--data", "{data}", "--runtime", "torch"], "does not load"),
        (["--base", "{base}", "--data", "{data}", "--task-data", "{data}"], "needs --task"),
    ],
)
def test_bad_requests_are_refused_before_any_work(
    world: World, tiny_gguf: Path, arguments: list[str], words: str
) -> None:
    given = [a.format(base=world.base, data=world.data) for a in arguments]
    result = CliRunner().invoke(cli, ["evaluate", str(tiny_gguf), *given])
    assert result.exit_code == 2, result.output
    assert words in result.output
