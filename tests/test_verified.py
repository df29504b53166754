"""What is exported for a device is measured, and what misses a budget is not kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from edgeadapt import verified
from edgeadapt.bench.measurement import Failure, Measurement
from edgeadapt.cli import cli
from edgeadapt.detect.profile import profile_yaml
from edgeadapt.devices import Budgets, DeviceProfile, load_profile
from edgeadapt.errors import GateFailure, InputError
from edgeadapt.export import open_model
from edgeadapt.fidelity.parity import ParityGate
from edgeadapt.hardware import Figure
from edgeadapt.planner import Candidate
from edgeadapt.verified import HERE, SUFFIX, export_verified

pytest.importorskip("llama_cpp")


def device(**budgets: float) -> DeviceProfile:
    """A laptop that runs llama.cpp alone, with these budgets."""
    profile = load_profile("laptop-x86")
    return profile.model_copy(
        update={
            "budgets": Budgets(
                **{name: Figure(value=value, estimate=True) for name, value in budgets.items()}
            ),
            "runtimes": tuple(r for r in profile.runtimes if r.name == "llama-cpp"),
        }
    )


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_keeps_the_budgets_is_published_with_its_figures(
    tiny_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "made/model.gguf"
    model = open_model(str(tiny_model))
    profile = device(min_decode_tps=0.001, max_ttft_s=1000.0)
    gate = ParityGate(model.folder, quick=True)
    done = export_verified(model, profile, out, host=HERE, context=128, check=gate)
    assert gate.report.checked
    assert left(out.parent) == ["model.gguf", "model.gguf" + SUFFIX]
    record = json.loads((out.parent / ("model.gguf" + SUFFIX)).read_text())
    assert record == json.loads(json.dumps(done.record()))
    (attempt,) = record["attempts"]
    assert attempt["missed"] == [] and attempt["measured"]["decode_tps"] > 0
    assert attempt["measured"]["memory_bytes"] > 1 << 20
    assert attempt["predicted"]["quantization"] == done.artifact.quantization
    with pytest.raises(InputError, match="exists already"):
        export_verified(model, profile, out, host=HERE, context=128)


def test_if_nothing_keeps_them_nothing_is_left_and_every_attempt_is_told(
    tiny_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "made/model.gguf"
    profile = device(min_decode_tps=1e9)
    with pytest.raises(GateFailure, match="slower than the 1e\\+09 tokens a second") as caught:
        export_verified(open_model(str(tiny_model)), profile, out, host=HERE, context=128)
    assert caught.value.record is not None
    assert caught.value.record["failed_gates"] == ["budget"]
    tried = [attempt["predicted"]["quantization"] for attempt in caught.value.record["attempts"]]
    assert len(tried) == len(set(tried)) > 1
    assert left(out.parent) == []


def test_the_next_candidate_is_taken_where_one_misses_or_fails(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = verified._here

    def as_if(path: Path, candidate: Candidate, plan: Any) -> Measurement | Failure:
        """The first candidate dies, the second one takes as much memory as there is."""
        tried.append(candidate.quantization)
        if len(tried) == 1:
            return Failure(
                outcome="out_of_memory", reason="it ran out of memory", artifact=str(path),
                runtime="llama-cpp", threads=1, seconds=1.0,
            )  # fmt: skip
        found = measured(path, candidate, plan)
        if isinstance(found, Failure) or len(tried) > 2:
            return found
        memory = found.memory.model_copy(update={"peak_rss": 1 << 50})
        return found.model_copy(update={"memory": memory})

    tried: list[str] = []
    monkeypatch.setattr(verified, "_here", as_if)
    out = tmp_path / "model.gguf"
    done = export_verified(open_model(str(tiny_model)), device(), out, host=HERE, context=128)
    first, second, third = done.attempts
    assert first.missed == ("it ran out of memory",) and first.measured is None
    assert "more memory than" in second.missed[0]
    assert third.missed == () and third.candidate.quantization == done.artifact.quantization
    assert [attempt.candidate.quantization for attempt in done.attempts] == tried
    assert left(tmp_path) == ["model.gguf", "model.gguf" + SUFFIX]


def test_each_attempt_is_told_once(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured, tried = verified._here, []

    def as_if(path: Path, candidate: Candidate, plan: Any) -> Measurement | Failure:
        """The first candidate dies."""
        tried.append(candidate.quantization)
        if len(tried) > 1:
            return measured(path, candidate, plan)
        return Failure(
            outcome="out_of_memory", reason="it ran out of memory", artifact=str(path),
            runtime="llama-cpp", threads=1, seconds=1.0,
        )  # fmt: skip

    monkeypatch.setattr(verified, "_here", as_if)
    profile = tmp_path / "board.yaml"
    profile.write_text(profile_yaml(device()))
    words = ["export", "--base", tiny_model, "--device", profile, "--verify", "here"]
    words += ["--context", 128, "--out", tmp_path / "model.gguf"]
    told = CliRunner().invoke(cli, [*map(str, words)])
    assert told.exit_code == 0 and len(tried) == 2, told.output
    assert told.output.count("it ran out of memory") == 1
    assert told.output.count("tokens a second, ") == 1


def test_from_the_command_line(tiny_model: Path, tmp_path: Path) -> None:
    profile = tmp_path / "board.yaml"
    profile.write_text(profile_yaml(device(min_decode_tps=0.001)))
    out = tmp_path / "model.gguf"
    words = ["export", "--base", tiny_model, "--device", profile, "--verify", "here"]
    words += ["--context", 128, "--out", out]
    told = CliRunner().invoke(cli, [*map(str, words), "--json", "-q"])
    assert told.exit_code == 0, told.output
    document = json.loads(told.stdout)
    assert document["verification"]["attempts"][-1]["missed"] == []
    assert document["parity"]["passed"] and out.is_file()
    wrong = CliRunner().invoke(
        cli, ["export", "--base", str(tiny_model), "--format", "gguf", "--quant", "F16",
              "--verify", "here", "--out", str(tmp_path / "other.gguf")],
    )  # fmt: skip
    assert wrong.exit_code == 2 and "--verify goes with --device" in wrong.output
