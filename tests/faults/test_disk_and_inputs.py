"""A full disk, inputs that vanish or change, and two runs in one folder."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import Undisturbed
from tests.faults.whole import REPORTS, check_cache, check_whole, contents, leftovers
from tests.faults.workplace import Program, finish, started
from tests.tiny import save_llama

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif("EDGEADAPT_TEST_SLOW" not in os.environ, reason="minutes: make test-slow"),
]

ADAPTED = ("train", "merge", "reference")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "edgeadapt-test", place], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small disk is not permitted here")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def fill(disk: Path, left: int) -> Path:
    """A file that leaves so many bytes of a disk."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        file.write(bytes(max(0, shutil.disk_usage(disk).free - left)))
    return filler


def failed(program: Program) -> str:
    """The one sentence that a run ended with."""
    assert program.process.wait(300) == 2, program.said
    assert "Traceback" not in program.said, program.said
    (sentence,) = [line for line in program.said.splitlines() if line.startswith("Error: ")]
    assert program.left() == []
    return sentence


def ends_equal(undisturbed: Undisturbed, root: Path, cache: Path, **environment: str) -> None:
    """See that the run goes on to the end of an undisturbed one."""
    check_whole(root, undisturbed.contents)
    check_cache(cache, undisturbed.cache)
    finish(undisturbed.workplace, root.parent, cache, **environment)
    check_whole(root, undisturbed.contents)
    assert contents(root) == undisturbed.contents
    assert all((root / name).is_file() for name in REPORTS)
    assert leftovers(root, cache) == []


def all_but(undisturbed: Undisturbed, *kinds: str) -> tuple[str, ...]:
    return tuple(stage for stage in undisturbed.seconds if not stage.startswith(kinds))


@pytest.mark.parametrize(
    ("fails_in", "left"), [("train", 150_000), ("export", 60_000), ("report", 20_000)]
)
def test_a_full_disk_of_runs(
    fails_in: str, left: int, undisturbed: Undisturbed, disk: Path, tmp_path: Path
) -> None:
    stages = {"train": (), "export": ADAPTED, "report": all_but(undisturbed, "report")}[fails_in]
    root, cache = disk / "runs/tiny", tmp_path / "cache"
    shutil.copytree(undisturbed.cache, cache)
    if stages:
        undisturbed.copy_stages(disk / "runs", *stages)
    filler = fill(disk, left)
    with started(undisturbed.workplace, disk / "runs", cache) as program:
        sentence = failed(program)
    assert program.stages[-1].startswith(fails_in)
    assert "o space left on device" in sentence or "MB free" in sentence
    filler.unlink()
    ends_equal(undisturbed, root, cache)


def test_a_full_disk_of_the_cache(undisturbed: Undisturbed, disk: Path, tmp_path: Path) -> None:
    root = undisturbed.copy_stages(tmp_path / "runs", "train", "machine")
    filler = fill(disk, 20_000)
    with started(undisturbed.workplace, root.parent, disk / "cache") as program:
        sentence = failed(program)
    assert program.stages[-1] == "merge"
    assert "o space left on device" in sentence or "MB free" in sentence
    filler.unlink()
    ends_equal(undisturbed, root, disk / "cache")


def test_a_full_disk_of_temporary_files(
    undisturbed: Undisturbed, disk: Path, tmp_path: Path
) -> None:
    root = undisturbed.copy_stages(tmp_path / "runs", *all_but(undisturbed, "evaluate", "report"))
    cache = tmp_path / "cache"
    for name in ("references", "parity", "hashes"):
        shutil.copytree(undisturbed.cache / name, cache / name)
    filler = fill(disk, 12_000)  # with less, Python itself takes another place
    with started(undisturbed.workplace, root.parent, cache, TMPDIR=str(disk)) as program:
        sentence = failed(program)
    assert program.stages[-1].startswith("evaluate")
    assert "o space left on device" in sentence or "MB free" in sentence
    filler.unlink()
    ends_equal(undisturbed, root, cache, TMPDIR=str(disk))
    assert leftovers(disk) == []


def put_away(workplace: Path) -> Callable[[], None]:
    """Remove the training data; returns what puts it back."""
    hidden = (workplace / "train.jsonl").rename(workplace / "away")
    return lambda: hidden.rename(workplace / "train.jsonl") and None


def put_base_away(workplace: Path) -> Callable[[], None]:
    hidden = (workplace / "base").rename(workplace / "away")
    return lambda: hidden.rename(workplace / "base") and None


def put_another_base(workplace: Path) -> Callable[[], None]:
    other = save_llama(workplace / "other", hidden=64, layers=2, seed=1)
    back = put_base_away(workplace)
    other.rename(workplace / "base")

    def put_back() -> None:
        shutil.rmtree(workplace / "base")
        back()

    return put_back


@pytest.mark.parametrize(
    ("stage", "act", "said"),
    [
        ("export-gguf-Q8_0", put_away, "train.jsonl was removed"),
        ("merge", put_base_away, "was removed"),
        ("merge", put_another_base, "was changed"),
    ],
)
def test_an_input_that_is_not_there_any_more(
    stage: str,
    act: Callable[[Path], Callable[[], None]],
    said: str,
    undisturbed: Undisturbed,
    tmp_path: Path,
) -> None:
    left_out = ("report", "merge") if stage == "merge" else ("report", "export")
    root = undisturbed.copy_stages(tmp_path / "runs", *all_but(undisturbed, *left_out))
    cache = tmp_path / "cache"
    if stage != "merge":
        shutil.copytree(undisturbed.cache, cache)
    with started(undisturbed.workplace, root.parent, cache) as program:
        for begun in program.steps():
            if begun == stage:
                put_back = act(undisturbed.workplace)
                break
        try:
            sentence = failed(program)
        finally:
            put_back()
    assert said in sentence
    ends_equal(undisturbed, root, cache)


def test_two_at_once_and_a_recipe_that_is_gone(undisturbed: Undisturbed, tmp_path: Path) -> None:
    root = undisturbed.copy_stages(tmp_path / "runs", *all_but(undisturbed, "machine", "report"))
    cache = tmp_path / "cache"
    shutil.copytree(undisturbed.cache, cache)
    recipe = undisturbed.workplace / "tiny.yaml"
    text = recipe.read_text()
    with started(undisturbed.workplace, root.parent, cache) as first:
        for begun in first.steps():
            if begun == "machine":
                break
        with started(undisturbed.workplace, root.parent, cache, log="second.log") as second:
            sentence = failed(second)
            assert f"process {first.process.pid}" in sentence and str(root) in sentence
        assert first.process.poll() is None
        recipe.unlink()  # it was read
        try:
            assert first.process.wait(300) == 0, first.said
        finally:
            recipe.write_text(text)
    assert contents(root) == undisturbed.contents
    assert all((root / name).is_file() for name in REPORTS)
