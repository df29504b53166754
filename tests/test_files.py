"""Files are whole or absent, whatever ends the process that writes them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from edgeadapt.errors import InputError
from edgeadapt.files import atomic_file, atomic_files, atomic_folder, sweep_cache
from edgeadapt.leftovers import scratch

HANG = """
import os, sys, time
from pathlib import Path
from edgeadapt.files import atomic_file, atomic_folder
with {kind}(Path(sys.argv[1])) as partial:
    (partial / "x" if partial.is_dir() else partial).write_text("half")
    print(partial, flush=True)
    time.sleep(60)
"""


def hang(kind: str, final: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process in the middle of writing, and its partial file."""
    process = subprocess.Popen(
        [sys.executable, "-c", HANG.format(kind=kind), str(final)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


@pytest.mark.parametrize("kind", ["atomic_file", "atomic_folder"])
def test_leftovers_of_a_killed_process_go_and_a_living_ones_stay(kind: str, tmp_path: Path) -> None:
    final = tmp_path / "m.gguf"
    make = atomic_file if kind == "atomic_file" else atomic_folder
    dead, left = hang(kind, final)
    dead.kill()
    dead.wait()
    alive, busy = hang(kind, final)  # removes what the first left, too
    try:
        assert not left.exists() and busy.exists()
        stranger = tmp_path / ".m.gguf.extra.abcd1234.partial"
        stranger.write_text("of another name")
        with make(final) as partial:
            assert busy.exists()
            if kind == "atomic_file":
                partial.write_text("whole")
        assert busy.exists() and final.exists()
    finally:
        alive.kill()
        alive.wait()
    final.unlink() if final.is_file() else final.rmdir()
    with make(final):
        assert not busy.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [stranger.name, "m.gguf"]


def test_several_files_come_together(tmp_path: Path) -> None:
    finals = [tmp_path / name for name in "abc"]
    with pytest.raises(ZeroDivisionError), atomic_files(finals) as partials:
        for partial in partials:
            partial.write_text("x")
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []
    with atomic_files(finals) as partials:
        for partial in partials:
            partial.write_text("x")
        assert not any(final.exists() for final in finals)
    assert sorted(tmp_path.iterdir()) == finals


def test_several_files_are_undone_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finals = [tmp_path / name for name in "abc"]
    with pytest.raises(IsADirectoryError), atomic_files(finals) as partials:
        for partial in partials:
            partial.write_text("x")
        finals[0].mkdir()  # the last rename fails
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_exists_stays(tmp_path: Path) -> None:
    (tmp_path / "b").write_text("mine")
    with pytest.raises(InputError, match="exists"), atomic_files([tmp_path / "a", tmp_path / "b"]):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_what_was_to_be_replaced_is_no_leftover(tmp_path: Path) -> None:
    final = tmp_path / "stage"
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from edgeadapt.files import atomic_folder\n"
        "rename, final = Path.rename, Path(sys.argv[1])\n"
        "def renamed(self, target):\n"
        "    if target == final: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return rename(self, target)\n"
        "Path.rename = renamed\n"
        "with atomic_folder(final, overwrite=True) as partial: pass"
    )
    final.mkdir()
    killed = subprocess.run([sys.executable, "-c", code, str(final)])
    assert killed.returncode == -9 and not final.exists()  # between its two renames
    with atomic_folder(final, overwrite=True):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["stage"]


def test_scratch_and_cache_of_killed_processes_go(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead, left = hang("atomic_folder", tmp_path / "edgeadapt-merge")
    cached, half = hang("atomic_file", own_cache / "imatrix/0123/m.gguf")
    alive, busy = hang("atomic_file", own_cache / "imatrix/0123/n.gguf")
    for process in (dead, cached):
        process.kill()
        process.wait()
    try:
        with scratch("base") as folder:
            assert folder.is_dir() and left.exists()  # that was for another purpose
            sweep_cache()
            assert folder.is_dir()
        assert not left.exists() and not half.exists() and busy.exists()
    finally:
        alive.kill()
        alive.wait()
    assert not folder.exists()


SLOW_EXPORT = """
import os, sys, time
from edgeadapt.cli import cli
from edgeadapt.safetensors_io import SafetensorsFile
read = SafetensorsFile.rows
def rows(self, name, start, stop):
    if "layers.1" in name:
        os.write(1, b"reading\\n")  # at once: several threads read
        time.sleep(0.3)
    return read(self, name, start, stop)
SafetensorsFile.rows = rows
cli(["export", "--format", "gguf", "--quant", "F16", "--base", sys.argv[1], "--out", sys.argv[2],
     *sys.argv[3:]])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("options", [[], ["--split-max-size", "50K"]])
def test_an_interrupted_export_leaves_nothing_under_its_name(
    number: signal.Signals, options: list[str], tiny_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "m.gguf"
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_EXPORT, str(tiny_model), str(out), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None and process.stdout.readline() == "reading\n"
    time.sleep(0.1)
    process.send_signal(number)
    process.wait(30)
    left = [path.name for path in tmp_path.iterdir()]
    assert all(name.endswith(".partial") for name in left)
    assert bool(left) == (number == signal.SIGKILL)
    assert process.returncode == {
        signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -9
    }[number]  # fmt: skip
    from click.testing import CliRunner

    from edgeadapt.cli import cli

    command = ["export", "--format", "gguf", "--quant", "F16", "--base", str(tiny_model)]
    assert CliRunner().invoke(cli, [*command, "--out", str(out), *options]).exit_code == 0
    names = [path.name for path in tmp_path.iterdir()]
    assert names and not any(name.endswith(".partial") for name in names)
