"""Two processes that share the model (FSDP2 over gloo) train as one does that has all of it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file

from edgeadapt.artifact import MANIFEST
from edgeadapt.cli import cli
from edgeadapt.errors import InputError, RuntimeFailure, UnsupportedError
from edgeadapt.training.processes import train_in_processes
from edgeadapt.training.train import train
from edgeadapt.training.world import asking_to_shard, this_world
from tests.training import shares
from tests.training.test_processes import SETTINGS, kill_one_at, launched_as_alone, order

RATES = {"lora": 1e-2, "full": 1e-3, "adapter": 1e-2}


def same_results(found: Path, expected: Path) -> None:
    """The same files, with the same configs, and tensors alike."""
    assert {path.name for path in found.iterdir()} == {path.name for path in expected.iterdir()}
    for path in expected.iterdir():
        if path.suffix == ".safetensors":
            ours, theirs = load_file(found / path.name), load_file(path)
            assert ours.keys() == theirs.keys()
            for name, tensor in theirs.items():
                # Where a gradient is almost nothing, Adam makes a step of its rounding.
                assert ours[name] == pytest.approx(tensor, abs=1e-4), name
        elif path.name != MANIFEST:
            assert (found / path.name).read_bytes() == path.read_bytes(), path.name


def norms(work: Path, step: int) -> list[float]:
    """Of the gradients, before they were clipped."""
    state = json.loads((work / f"checkpoint-{step}/trainer_state.json").read_text())
    return [entry["grad_norm"] for entry in state["log_history"] if "grad_norm" in entry]


@pytest.mark.parametrize("method", RATES)
def test_shares_have_the_loss_curve_of_one_process(
    base: Path, data: Path, tmp_path: Path, method: str
) -> None:
    settings = SETTINGS.model_copy(update={"method": method, "learning_rate": RATES[method]})
    two = train_in_processes(
        2, base, data, data, settings, tmp_path / "two",
        base_spec="tiny", work=tmp_path / "work-two", shard=True,
    )  # fmt: skip
    one = train(
        base, data, data, settings, tmp_path / "one", base_spec="tiny", work=tmp_path / "work-one"
    ).record
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5, abs=1e-5)
    assert len(one["losses"]) == 5 and one["losses"][0] - one["losses"][-1] > 0.1
    assert order(tmp_path / "work-two") == order(tmp_path / "work-one")
    for when in ("before", "after"):
        assert two["held_out"][when] == pytest.approx(one["held_out"][when], rel=1e-5)
    assert {k: v for k, v in two.items() if k not in ("losses", "held_out")} == {
        k: v for k, v in one.items() if k not in ("losses", "held_out")
    }
    same_results(tmp_path / "two", tmp_path / "one")
    expected = norms(tmp_path / "work-one", 5)
    assert norms(tmp_path / "work-two", 5) == pytest.approx(expected, rel=1e-4)
    assert len(expected) == 5 and max(expected) > 1  # so they were clipped


@pytest.mark.parametrize(("method", "dtype"), [("lora", "bfloat16"), ("full", "float32")])
def test_each_process_holds_half(
    base: Path, data: Path, tmp_path: Path, method: str, dtype: str
) -> None:
    """Of an adapter in float32 too, whose frozen base is not."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    words = [str(base), str(data), str(tmp_path / "out"), method, dtype]

    def start(rank: int | None) -> subprocess.Popen[str]:
        world = {} if rank is None else asking_to_shard() | {
            "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": str(rank),
            "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        }  # fmt: skip
        return subprocess.Popen(
            [sys.executable, "-m", shares.__name__, *words], text=True, stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2], env=os.environ | world,
        )  # fmt: skip

    def told(process: subprocess.Popen[str]) -> dict[str, Any]:
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0
        found: dict[str, Any] = json.loads(out.splitlines()[-1])
        return found

    halves = [told(process) for process in [start(0), start(1)]]
    words[2] = str(tmp_path / "alone")
    whole = told(start(None))
    for half in halves:
        assert half["losses"] == pytest.approx(whole["losses"], rel=1e-4)
        for what, size in whole["held"].items():
            assert 0 < 0.4 * size < half["held"][what] < 0.6 * size, what


@pytest.mark.parametrize(("method", "shard"), [("lora", True), ("full", False)])
def test_a_killed_training_goes_on(
    base: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    shard: bool,
) -> None:
    """From its checkpoint, sharded or not: the curve and the result are those of no kill."""
    work = tmp_path / "work"
    settings = SETTINGS.model_copy(
        update={"method": method, "learning_rate": RATES[method], "gradient_accumulation": 1}
    )
    with monkeypatch.context() as patched:
        killed = kill_one_at(3, patched)
        with pytest.raises(RuntimeFailure, match="was ended by SIGKILL"):
            train_in_processes(
                2, base, data, None, settings, tmp_path / "out", base_spec="tiny", work=work,
                shard=True,
            )  # fmt: skip
    assert len(killed) == 2 and not (tmp_path / "out").exists()
    assert list(work.glob("checkpoint-*/complete"))
    done = len(order(work))

    going_on: dict[str, Any] = {"base_spec": "tiny", "work": work}
    if shard:
        found = train_in_processes(
            2, base, data, None, settings, tmp_path / "out", shard=True, **going_on
        )
    else:
        found = train(base, data, None, settings, tmp_path / "out", **going_on).record
    whole = train(base, data, None, settings, tmp_path / "whole", base_spec="tiny")
    assert found["losses"] == pytest.approx(whole.record["losses"], rel=1e-5, abs=1e-5)
    assert 0 < done < 5 == len(order(work))
    same_results(tmp_path / "out", tmp_path / "whole")


def test_a_finished_checkpoint_of_shares_is_only_published(
    base: Path, data: Path, tmp_path: Path
) -> None:
    settings = SETTINGS.model_copy(update={"max_steps": 2})
    arguments: Any = (2, base, data, data, settings)
    more: Any = {"base_spec": "tiny", "work": tmp_path / "work", "shard": True}
    first = train_in_processes(*arguments, tmp_path / "first", **more)
    second = train_in_processes(*arguments, tmp_path / "second", **more)
    assert second["losses"] == first["losses"]
    assert second["held_out"]["after"] == pytest.approx(first["held_out"]["after"], rel=1e-6)
    same_results(tmp_path / "second", tmp_path / "first")


def test_accelerate_launch_shards(base: Path, data: Path, tmp_path: Path) -> None:
    launched_as_alone(base, data, tmp_path, "--use_fsdp", "--fsdp_version", "2")


@pytest.mark.parametrize("method", ["qlora", "prefix", "prompt"])
def test_a_model_that_cannot_be_shared_is_refused(
    base: Path, data: Path, tmp_path: Path, method: str
) -> None:
    words = ["train", "--base", str(base), "--data", str(data), "--out", str(tmp_path / "out")]
    words += ["--method", method, "--processes", "2", "--shard"]
    found = CliRunner().invoke(cli, words)
    assert found.exit_code == 2
    assert f"the method {method} " in found.stderr and "leave out --shard" in found.stderr
    assert list(tmp_path.iterdir()) == []


def test_shards_for_one_process_are_refused(base: Path, data: Path, tmp_path: Path) -> None:
    words = ["train", "--base", str(base), "--data", str(data), "--out", str(tmp_path / "out")]
    found = CliRunner().invoke(cli, [*words, "--shard"])
    assert found.exit_code == 2 and "add --processes 2" in found.stderr


@pytest.mark.parametrize(
    ("told", "kind", "what"),
    [
        ({"FSDP_VERSION": "1"}, UnsupportedError, "--fsdp_version 2"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, UnsupportedError, "leave out --fsdp_offload_params"),
        (
            {"FSDP_ACTIVATION_CHECKPOINTING": "true"}, UnsupportedError,
            "--set gradient_checkpointing=true",
        ),
        ({}, InputError, "start two or more"),
    ],
)  # fmt: skip
def test_what_a_launcher_cannot_have_is_refused(
    monkeypatch: pytest.MonkeyPatch, told: dict[str, str], kind: type[Exception], what: str
) -> None:
    for name, value in (asking_to_shard() | told).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(kind, match=what):
        this_world()
