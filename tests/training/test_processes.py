"""Two processes over gloo train as one does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from edgeadapt.training.processes import train_in_processes
from edgeadapt.training.settings import TrainSettings
from edgeadapt.training.train import train

# Ten examples in batches of 4, so an epoch's last batch has 2, and its last step one batch.
SETTINGS = TrainSettings(
    method="lora", r=4, max_steps=5, batch_size=4, gradient_accumulation=2, learning_rate=1e-2,
    save_every_s=0,
)  # fmt: skip


def order(work: Path) -> list[Any]:
    return [json.loads(line) for line in (work / "order.jsonl").read_text().splitlines()]


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
