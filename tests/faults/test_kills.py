"""`edgeadapt run` killed again and again, in every stage, ends as if it had not been.

`EDGEADAPT_TEST_KILLS=10` kills ten times in each kind of stage in place of three, and
`EDGEADAPT_TEST_SEED` draws other moments.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.conftest import Undisturbed
from tests.faults.whole import check_cache, check_whole, contents, inputs_hash, leftovers
from tests.faults.workplace import finish, started

pytestmark = pytest.mark.e2e

KINDS = (
    "start", "train", "merge", "reference", "export", "weights", "evaluate", "bench", "machine",
    "report",
)  # fmt: skip
PER_KIND = int(os.environ.get("EDGEADAPT_TEST_KILLS", "3"))
SEED = int(os.environ.get("EDGEADAPT_TEST_SEED", "1"))


def kind_of(stage: str) -> str:
    return stage.partition("-")[0]


class Killer:
    """Kills runs in one folder until each kind of stage was hit often enough."""

    def __init__(self, undisturbed: Undisturbed, folder: Path) -> None:
        self.undisturbed = undisturbed
        self.runs, self.cache, self.scratch = folder / "runs", folder / "cache", folder / "tmp"
        self.scratch.mkdir()
        self.root = self.runs / "tiny"
        self.random = random.Random(SEED)
        self.hits: Counter[str] = Counter()
        self.table: list[str] = []
        self.hurry: Counter[str] = Counter()
        """How often a stage of a kind ended before the moment that was drawn for its kill."""

    def wanted(self) -> list[str]:
        return [kind for kind in KINDS if self.hits[kind] < PER_KIND]

    def attempt(self) -> None:
        """Start the run, and kill it in the first stage that still wants it, or let it end."""
        with started(
            self.undisturbed.workplace, self.runs, self.cache, TMPDIR=str(self.scratch)
        ) as program:
            for stage in program.steps():
                if kind_of(stage) in self.wanted():
                    most = self.undisturbed.seconds[stage] / 2 ** self.hurry[kind_of(stage)]
                    delay, group = self.random.uniform(0, most), self.random.random() < 0.25
                    time.sleep(delay)
                    program.kill(group)
                    break
        hit = program.stages[-1]
        if program.process.returncode == -9:
            self.hits[kind_of(hit)] += 1
            aim = f"{delay:6.2f} s after {stage} began"
            self.table.append(f"{len(self.table) + 1:3} {hit:32} {aim}{', group' * group}")
            if hit != stage:
                self.hurry[kind_of(stage)] += 1
        else:
            assert program.process.returncode == 0, program.said
            self.hurry.update(self.wanted())
            self.take_away()
        assert program.left() == []
        check_whole(self.root, self.undisturbed.contents)
        check_cache(self.cache, self.undisturbed.cache)
        assert inputs_hash(self.undisturbed.workplace) == self.undisturbed.inputs

    def take_away(self) -> None:
        """Remove finished stages of kinds that want more, as a user may, to be done again."""
        for folder in self.root.iterdir():
            if folder.is_dir() and kind_of(folder.name) in self.wanted():
                shutil.rmtree(folder)
        if {"merge", "reference"} & set(self.wanted()):
            shutil.rmtree(self.cache / "references", ignore_errors=True)


def test_a_run_killed_in_every_stage_ends_as_if_it_had_not_been(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    killer = Killer(undisturbed, tmp_path)
    while killer.wanted():
        killer.attempt()
        (tmp_path / "kills.txt").write_text("\n".join(killer.table) + "\n")
    sys.stdout.write((tmp_path / "kills.txt").read_text() + f"{dict(killer.hits)}\n")
    finish(undisturbed.workplace, killer.runs, killer.cache, TMPDIR=str(killer.scratch))
    assert killer.hits.total() >= 30
    assert all(killer.hits[kind] >= 3 for kind in KINDS)
    assert contents(killer.root) == undisturbed.contents
    check_cache(killer.cache, undisturbed.cache)
    assert leftovers(killer.root, killer.cache, killer.scratch) == []
    # ONNX Runtime makes the other one, whatever becomes of the process
    assert {path.name for path in killer.scratch.iterdir()} <= {".ses"}
