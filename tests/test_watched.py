"""A run notices that what it was given is not what it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeadapt.errors import InputError, RuntimeFailure
from edgeadapt.pipeline.workspace import Workspace
from edgeadapt.watched import Watched


@pytest.fixture
def given(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    (tmp_path / "base/weights").write_text("w")
    return tmp_path / "base"


def space_of(given: Path) -> Workspace:
    watched = Watched([given, given.parent / "absent"])
    watched.check()
    return Workspace(given.parent / "runs", resume=True, check_inputs=watched.check)


def change(given: Path) -> None:
    (given / "weights").write_text("others")


def remove(given: Path) -> None:
    (given / "weights").unlink()


def add(given: Path) -> None:
    (given / "more").write_text("m")


@pytest.mark.parametrize(
    ("act", "said"),
    [(change, "weights was changed"), (remove, "weights was removed"), (add, "more was changed")],
)
def test_nothing_stands_under_a_name_that_is_made_of_something_else(
    act: object, said: str, given: Path
) -> None:
    def work(folder: Path) -> None:
        act(given)  # type: ignore[operator]
        (folder / "result").write_text("x")

    with pytest.raises(InputError, match=said):
        space_of(given).stage("s", {}, work)
    assert not list((given.parent / "runs").iterdir())


def test_a_failure_is_laid_to_what_was_removed(given: Path) -> None:
    def work(folder: Path) -> None:
        remove(given)
        raise RuntimeFailure("FileNotFoundError; see --debug")

    with pytest.raises(InputError, match=r"weights was removed.*--resume"):
        space_of(given).stage("s", {}, work)


def test_what_was_read_first_is_kept_and_the_next_stage_stops(given: Path) -> None:
    space = space_of(given)
    space.stage("train", {}, lambda folder: change(given), reads_first=True)
    with pytest.raises(InputError, match="changed"):
        space.stage("merge", {}, lambda folder: None)
    assert [path.name.partition("-")[0] for path in space.root.iterdir()] == ["train"]
