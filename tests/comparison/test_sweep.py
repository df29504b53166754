from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from edgeadapt.comparison.ground import Ground, find_ground
from edgeadapt.comparison.recipe import ComparisonRecipe, MethodWish, Trial
from edgeadapt.comparison.sweep import swept
from edgeadapt.errors import InputError
from edgeadapt.files import sha256_file
from tests.questions import write_questions
from tests.tiny import save_llama

pytest.importorskip("trl")


def ground_of(folder: Path, examples: int, sweep: dict[str, Any]) -> tuple[Ground, Trial]:
    save_llama(folder / "base", hidden=64, layers=2)
    write_questions(folder, train=examples, held=4, general=4)
    recipe = ComparisonRecipe(
        name="tiny", base=str(folder / "base"),
        data={"train": str(folder / "train.jsonl"), "held_out": str(folder / "held.jsonl"),
              "general": str(folder / "general.jsonl")},
        train={"max_steps": 4, "batch_size": 2},
        methods=["none", {"method": "lora", "sweep": sweep}], devices=["laptop-x86"],
    )  # fmt: skip
    trial = next(trial for trial in recipe.trials() if trial.wish.trained)
    return find_ground(recipe, folder / "runs"), trial


def test_the_best_on_a_slice_of_the_training_data_is_chosen_once(tmp_path: Path) -> None:
    ground, trial = ground_of(tmp_path, 30, {"learning_rate": [1e-8, 1e-2], "r": [2]})
    held_out = sha256_file(ground.held_out)
    chosen, record = swept(ground.workspace(), ground, trial, ground.train_data)
    assert record is not None
    assert chosen == {"learning_rate": 1e-2, "r": 2}
    assert [one["values"]["learning_rate"] for one in record["tried"]] == [1e-8, 1e-2]
    assert ground.recipe.settings(trial.wish, 0, chosen).r == 2
    assert sha256_file(ground.held_out) == held_out

    (stage,) = (tmp_path / "runs").glob("sweep-*")
    parts = [(stage / f"{name}.jsonl").read_text().splitlines() for name in ("validation", "train")]
    assert [len(part) for part in parts] == [record["validation_examples"], 27] == [3, 27]
    assert not set(parts[0]) & set(parts[1])
    assert sorted(entry.name for entry in stage.iterdir() if entry.is_dir()) == []
    assert swept(ground.workspace(), ground, trial, ground.train_data) == (chosen, record)


def test_a_sweep_needs_examples_to_put_aside(tmp_path: Path) -> None:
    ground, trial = ground_of(tmp_path, 1, {"r": [2, 4]})
    with pytest.raises(InputError, match="needs at least 2"):
        swept(ground.workspace(), ground, trial, ground.train_data)


@pytest.mark.parametrize(
    ("wish", "told"),
    [
        ({"method": "rag", "sweep": {"r": [1]}}, "trains nothing"),
        ({"method": "lora", "sweep": {"seed": [1]}}, "cannot vary seed"),
        ({"method": "lora", "sweep": {"r": []}}, "values that differ"),
        ({"method": "lora", "sweep": {"r": [4, 4]}}, "values that differ"),
    ],
)
def test_what_no_sweep_can_be_is_refused(wish: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        MethodWish(**wish)
