"""Training in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from edgeadapt.errors import InputError
from edgeadapt.training.apart import TrainingCost, read_cost, train_apart
from edgeadapt.training.settings import TrainSettings
from edgeadapt.training.train import train
from tests.tiny import save_llama
from tests.training.conftest import write_questions


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("apart")
    data = folder / "train.jsonl"
    write_questions(data, 8)
    return save_llama(folder / "base"), data


def test_it_trains_the_same_and_tells_what_that_took(
    place: tuple[Path, Path], tmp_path: Path
) -> None:
    base, data = place
    settings = TrainSettings(method="lora", r=2, max_steps=2, batch_size=2)
    cost = train_apart(
        base, data, settings, tmp_path / "apart", base_spec="base", work=tmp_path / "work",
        ledger=tmp_path / "spent.json",
    )  # fmt: skip
    assert read_cost(tmp_path / "spent.json") == cost
    train(base, data, None, settings, tmp_path / "here", base_spec="base")
    here, apart = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("here", "apart")
    )
    assert here.keys() == apart.keys()
    assert all((here[name] == apart[name]).all() for name in here)
    assert cost.seconds > 0
    assert cost.peak_memory is None or cost.peak_memory > 100 << 20  # torch alone takes more


def test_what_is_wrong_is_said_as_in_this_process(place: tuple[Path, Path], tmp_path: Path) -> None:
    base, data = place
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="exists already"):
        train_apart(
            base, data, TrainSettings(max_steps=1), tmp_path / "there", base_spec="base",
            work=tmp_path / "work", ledger=tmp_path / "spent.json",
        )  # fmt: skip


def test_what_a_killed_run_took_counts_too(place: tuple[Path, Path], tmp_path: Path) -> None:
    base, data = place
    ledger = tmp_path / "spent.json"
    before = TrainingCost(1000.0, 1 << 50, None)
    ledger.write_text(json.dumps(before.record()))
    settings = TrainSettings(method="lora", r=2, max_steps=1, batch_size=2)
    cost = train_apart(
        base, data, settings, tmp_path / "out", base_spec="base", work=tmp_path / "work",
        ledger=ledger,
    )  # fmt: skip
    assert 1000 < cost.seconds < 1000 + 600
    assert (cost.peak_memory, cost.joules) == (1 << 50, None)
    assert read_cost(ledger).seconds == pytest.approx(cost.seconds, abs=5)


def test_costs_add_up() -> None:
    one, other = TrainingCost(2.0, None, 5.0), TrainingCost(3.0, 7, 6.0)
    assert one.and_then(other) == TrainingCost(5.0, 7, 11.0)
