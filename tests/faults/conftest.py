"""The run that nothing disturbs, to which all others are compared."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.whole import contents, inputs_hash
from tests.faults.workplace import make_workplace, started


@dataclass(frozen=True)
class Undisturbed:
    """A whole run, and how long each of its stages took."""

    workplace: Path
    root: Path
    cache: Path
    seconds: dict[str, float]
    """Of each stage, by its name in the log."""
    contents: dict[str, str]
    inputs: str

    def copy_stages(self, runs: Path, *names: str) -> Path:
        """Finished stages in another folder of runs; all if none is named. Returns the run's."""
        root = runs / "tiny"
        root.mkdir(parents=True)
        for folder in self.root.iterdir():
            if folder.is_dir() and (not names or folder.name.rpartition("-")[0] in names):
                shutil.copytree(folder, root / folder.name)
        return root


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """On one thread, in a cache of its own."""
    workplace = make_workplace(tmp_path_factory.mktemp("faults"))
    inputs, begun = inputs_hash(workplace), {}
    with started(workplace, workplace / "runs", workplace / "cache") as program:
        for stage in program.steps():
            begun[stage] = time.monotonic()
    assert program.process.returncode == 0, program.said
    names, times = list(begun), [*begun.values(), time.monotonic()]
    root = workplace / "runs/tiny"
    return Undisturbed(
        workplace, root, workplace / "cache",
        {name: times[i + 1] - times[i] for i, name in enumerate(names)}, contents(root), inputs,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def inputs_stay_as_they_are(undisturbed: Undisturbed) -> None:
    """See before each test that the one before it has changed no input."""
    assert inputs_hash(undisturbed.workplace) == undisturbed.inputs
