"""Stages are done once, redone when their inputs or files change, and never half done."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgeadapt.console import log
from edgeadapt.errors import InputError, RuntimeFailure
from edgeadapt.pipeline.workspace import Workspace, locked


def test_done_once(tmp_path: Path) -> None:
    calls = []

    def work(folder: Path) -> None:
        calls.append(folder)
        (folder / "result").write_text("x")

    space = Workspace(tmp_path, resume=False)
    first = space.stage("s", {"a": 1}, work)
    again = space.stage("s", {"a": 1}, work)
    assert len(calls) == 1 and again.reused and again.folder == first.folder
    other = space.stage("s", {"a": 2}, work)
    assert len(calls) == 2 and other.folder != first.folder


@pytest.mark.parametrize("damage", ["missing", "shorter", "extra", "no record"])
def test_a_changed_stage_is_done_again(damage: str, tmp_path: Path) -> None:
    def work(folder: Path) -> None:
        (folder / "result").write_text("xyz")

    space = Workspace(tmp_path, resume=False)
    folder = space.stage("s", {}, work).folder
    if damage == "missing":
        (folder / "result").unlink()
    elif damage == "shorter":
        (folder / "result").write_text("x")
    elif damage == "extra":
        (folder / "more").write_text("")
    else:
        (folder / "stage.json").write_text("{")
    assert not space.stage("s", {}, work).reused
    assert (folder / "result").read_text() == "xyz" and not (folder / "more").exists()


def test_a_failed_stage_leaves_no_finished_folder(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise RuntimeFailure("no")

    def look(folder: Path) -> None:
        found.append((folder / "half").exists())

    found: list[bool] = []
    with pytest.raises(RuntimeFailure):
        Workspace(tmp_path, resume=False).stage("s", {}, fail)
    assert [p for p in tmp_path.iterdir() if not p.name.startswith(".")] == []
    with pytest.raises(RuntimeFailure):
        Workspace(tmp_path, resume=True).stage("s", {}, fail)
    Workspace(tmp_path, resume=True).stage("s", {}, look)
    assert found == [True]  # with resume, what was begun is still there


DIES_AT_THE_END = """
import os, signal, sys
from pathlib import Path
from edgeadapt.pipeline import workspace
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "record":
    Path.replace = die
else:
    workspace.publish_folder = die
space = workspace.Workspace(Path(sys.argv[1]), resume=True)
space.stage("s", {}, lambda folder: (folder / "result").write_text("xyz"))
"""


@pytest.mark.parametrize("moment", ["record", "publish"])
def test_a_stage_killed_at_its_very_end_is_done_once_more_and_then_done(
    moment: str, tmp_path: Path
) -> None:
    def work(folder: Path) -> None:
        (folder / "result").write_text("xyz")

    killed = subprocess.run([sys.executable, "-c", DIES_AT_THE_END, str(tmp_path), moment])
    assert killed.returncode == -9
    folder = Workspace(tmp_path, resume=True).stage("s", {}, work).folder
    assert sorted(path.name for path in folder.iterdir()) == ["result", "stage.json"]
    assert Workspace(tmp_path, resume=True).stage("s", {}, work).reused


def test_bad_input_leaves_nothing_of_a_stage(tmp_path: Path) -> None:
    def refuse(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise InputError("no")

    with pytest.raises(InputError):
        Workspace(tmp_path, resume=False).stage("s", {}, refuse)
    assert list(tmp_path.iterdir()) == []


def test_without_resume_a_stage_begins_afresh_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise RuntimeFailure("no")

    def look(folder: Path) -> None:
        assert not (folder / "half").exists()

    monkeypatch.setattr(log, "propagate", True)
    with pytest.raises(RuntimeFailure):
        Workspace(tmp_path, resume=False).stage("s", {}, fail)
    assert "--resume" not in caplog.text
    Workspace(tmp_path, resume=False).stage("s", {}, look)
    assert "--resume" in caplog.text


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from edgeadapt.pipeline.workspace import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        named = rf"another edgeadapt run \(process {other.pid}\)"
        with pytest.raises(InputError, match=named), locked(tmp_path):
            pass
        with pytest.raises(InputError, match=named), locked(tmp_path):
            pass  # the first refusal has not changed the lock
        other.kill()  # the lock goes with the process
    with locked(tmp_path):
        pass
