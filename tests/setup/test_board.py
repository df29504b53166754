"""The folder for a board, as far as it goes without a compiler and without the network."""

from __future__ import annotations

import subprocess
from importlib.resources import files
from pathlib import Path

import pytest

from edgeadapt.cpu import Cpu
from edgeadapt.devices import load_profile
from edgeadapt.errors import InputError, UnsupportedError
from edgeadapt.setup import build
from edgeadapt.setup.board import _cpu_of, setup_board
from edgeadapt.setup.cpu import choose_options, cpuinfo_names

PI_5 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm asimddp"
"""Of a Raspberry Pi 5's /proc/cpuinfo."""


@pytest.mark.parametrize(
    ("device", "march"),
    [
        ("raspberry-pi-4", "armv8-a"),
        ("raspberry-pi-5", "armv8.2-a+dotprod+fp16"),
        ("jetson-orin-nano", "armv8.2-a+dotprod+fp16"),
    ],
)
def test_a_profile_gives_the_instruction_sets(device: str, march: str) -> None:
    options = choose_options(_cpu_of(load_profile(device)))
    assert options["GGML_CPU_ARM_ARCH"] == march


def test_a_profile_gives_the_options_that_the_board_itself_would_choose() -> None:
    found = choose_options(Cpu("aarch64", "", frozenset(PI_5.split())))
    assert found == choose_options(_cpu_of(load_profile("raspberry-pi-5")))


def test_what_gcc_does_not_know_counts_for_nothing() -> None:
    assert cpuinfo_names(["neon", "sme"]) == {"asimd"}


@pytest.mark.parametrize("device", ["laptop-x86", "apple-m1", "meta-quest-3"])
def test_other_machines_are_told_what_to_do(device: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="setup llama-cpp"):
        setup_board(device, tmp_path / "board")
    assert not list(tmp_path.iterdir())


def test_an_old_python_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"3\.10.*3\.11"):
        setup_board("raspberry-pi-5", tmp_path / "board", python="3.10")


def test_the_script_refuses_another_machine(tmp_path: Path) -> None:
    text = files("edgeadapt.setup").joinpath("board_install.sh.txt").read_text("utf-8")
    script = tmp_path / "install.sh"
    script.write_text(text.replace("@PYTHON@", "2.7").replace("@DEVICE@", "board"))
    done = subprocess.run(
        ["sh", str(script), str(tmp_path / "venv")], capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHON": "python3"},
    )  # fmt: skip
    assert done.returncode != 0
    assert not (tmp_path / "venv").exists()


def test_the_script_names_a_python_that_is_not_there(tmp_path: Path) -> None:
    text = files("edgeadapt.setup").joinpath("board_install.sh.txt").read_text("utf-8")
    script = tmp_path / "install.sh"
    script.write_text(text.replace("@PYTHON@", "3.99").replace("@DEVICE@", "board"))
    done = subprocess.run(
        ["sh", str(script), str(tmp_path / "venv")], capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("python3.99 not found; this folder is for Python 3.99, another")
    assert not (tmp_path / "venv").exists()


def test_jobs_fit_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Memory:
        available = 700 << 20

    monkeypatch.setattr("psutil.virtual_memory", Memory)
    assert build.jobs() == 1
