"""Two processes over gloo train as one does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import transformers
from safetensors.numpy import load_file

from edgeadapt.data.encode import encode_dataset
from edgeadapt.errors import DivergedError, InputError, RuntimeFailure
from edgeadapt.tokenizer import ModelTokenizer
from edgeadapt.training import loop, processes
from edgeadapt.training.checkpoints import WorkFolder
from edgeadapt.training.methods import METHODS
from edgeadapt.training.processes import train_in_processes
from edgeadapt.training.settings import TrainSettings
from edgeadapt.training.train import train
from edgeadapt.training.world import World

# Ten examples in batches of 4, so an epoch's last batch has 2, and its last step one batch.
SETTINGS = TrainSettings(
    method="lora", r=4, max_steps=5, batch_size=4, gradient_accumulation=2, learning_rate=1e-2,
    save_every_s=0,
)  # fmt: skip


def order(work: Path) -> list[Any]:
    return [json.loads(line) for line in (work / "order.jsonl").read_text().splitlines()]


def kill_one_at(last: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have a process killed after a step; what is returned will hold the ids of all."""
    started: list[int] = []
    steps: list[float] = []
    real = processes.run_job

    def noting(*args: Any, on_start: Any, on_progress: Any, **options: Any) -> Any:
        def start(process: int) -> None:
            started.append(process)
            on_start(process)

        def step(amount: float) -> None:
            on_progress(amount)
            steps.append(amount)
            if len(steps) == last:
                os.kill(started[-1], signal.SIGKILL)

        return real(*args, on_start=start, on_progress=on_progress and step, **options)

    monkeypatch.setattr(processes, "run_job", noting)
    return started


def test_two_processes_have_the_loss_curve_of_one(base: Path, data: Path, tmp_path: Path) -> None:
    found = [
        train_in_processes(
            2, base, data, data, SETTINGS, tmp_path / "two",
            base_spec="tiny", work=tmp_path / "work-two",
        ),
        train(
            base, data, data, SETTINGS, tmp_path / "one",
            base_spec="tiny", work=tmp_path / "work-one",
        ).record,
    ]  # fmt: skip
    two, one = found
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5, abs=1e-5)
    assert len(one["losses"]) == 5 and one["losses"][0] - one["losses"][-1] > 0.1
    assert order(tmp_path / "work-two") == order(tmp_path / "work-one")
    for when in ("before", "after"):
        assert two["held_out"][when] == pytest.approx(one["held_out"][when], rel=1e-5)
    assert {k: v for k, v in two.items() if k not in ("losses", "held_out")} == {
        k: v for k, v in one.items() if k not in ("losses", "held_out")
    }
    ours, expected = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("two", "one"))
    for name, tensor in expected.items():
        assert ours[name] == pytest.approx(tensor, abs=1e-5), name


def test_a_killed_process_ends_all_and_the_rest_goes_on_from_the_checkpoint(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes, of which one is killed, then as one: the curve is that of no kill."""
    work, settings = tmp_path / "work", SETTINGS.model_copy(update={"gradient_accumulation": 1})
    killed = kill_one_at(3, monkeypatch)
    with pytest.raises(RuntimeFailure, match="was ended by SIGKILL"):
        train_in_processes(
            2, base, data, None, settings, tmp_path / "out", base_spec="tiny", work=work
        )
    assert len(killed) == 2 and not any(psutil.pid_exists(process) for process in killed)
    assert not (tmp_path / "out").exists() and len(order(work)) < 5

    found = train(base, data, None, settings, tmp_path / "out", base_spec="tiny", work=work)
    whole = train(base, data, None, settings, tmp_path / "whole", base_spec="tiny")
    assert found.record["losses"] == pytest.approx(whole.record["losses"], rel=1e-5, abs=1e-5)
    assert len(order(work)) == 5


def launched_as_alone(base: Path, data: Path, folder: Path, *options: str) -> None:
    """See that what `accelerate launch` with these options trains in two is what one trains."""
    words = ["train", "--base", str(base), "--data", str(data), "--method", "lora", "--r", "4"]
    words += ["--max-steps", "3", "--batch-size", "3", "--learning-rate", "1e-2", "--json"]
    launch = ["-m", "accelerate.commands.launch", "--num_processes", "2", *options, "-m"]
    records = []
    for name, start in (("two", launch), ("one", ["-m"])):
        done = subprocess.run(
            [sys.executable, *start, "edgeadapt", *words, "--out", str(folder / name)],
            capture_output=True, text=True, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        records.append(json.loads(done.stdout))  # of one process alone
    two, one = records
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5, abs=1e-5)
    assert two["trained_parameters"] == one["trained_parameters"]


def test_accelerate_launch_trains_the_same(base: Path, data: Path, tmp_path: Path) -> None:
    launched_as_alone(base, data, tmp_path, "--cpu")


def test_only_the_process_that_leads_writes_a_checkpoint(
    base: Path, data: Path, tmp_path: Path
) -> None:
    """Two that write the same file leave one that is neither's."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    encoded = encode_dataset(data, ModelTokenizer.from_folder(base), 64)
    make = METHODS["lora"].peft_config
    assert make is not None
    for rank in (0, 1):
        trainer = loop.make_trainer(
            transformers.AutoModelForCausalLM.from_pretrained(base),
            make(SETTINGS), tokenizer, encoded, SETTINGS, max_steps=1,
            learning_rate=1e-3, work=WorkFolder(tmp_path / f"work-{rank}", {}),
            world=World(rank=rank),
        )  # fmt: skip
        trainer.save_model(str(tmp_path / f"saved-{rank}"))
    assert (tmp_path / "saved-0/adapter_model.safetensors").is_file()
    assert not (tmp_path / "saved-1").exists()


def test_a_failure_in_the_processes_is_told_as_in_one(
    base: Path, data: Path, tmp_path: Path
) -> None:
    diverging = SETTINGS.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(DivergedError, match="training diverged"):
        train_in_processes(2, base, data, None, diverging, tmp_path / "out", base_spec="tiny")
    assert not (tmp_path / "out").exists()


def test_more_processes_than_examples_in_a_batch_are_refused(
    base: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="5 processes cannot share a batch of 4"):
        train_in_processes(5, base, data, None, SETTINGS, tmp_path / "out", base_spec="tiny")
