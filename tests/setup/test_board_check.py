"""What a machine is told that the wheels of a board's folder were not made for."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edgeadapt.cpu import Cpu
from edgeadapt.setup import RECORD
from edgeadapt.setup.board_check import glibc_needed, refusal, this_glibc

PI_4 = Cpu("aarch64", "Raspberry Pi 4", frozenset({"fp", "asimd"}))
PI_5 = Cpu("aarch64", "Raspberry Pi 5", frozenset({"fp", "asimd", "fphp", "asimdhp", "asimddp"}))
ROOT = Path(__file__).parents[2]


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """As `setup board raspberry-pi-5` leaves them, as far as they are looked at."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    options = {"GGML_NATIVE": "OFF", "GGML_CPU_ARM_ARCH": "armv8.2-a+dotprod+fp16"}
    llama = folder / "llama_cpp_python-1-py3-none-manylinux_2_34_aarch64.whl"
    with zipfile.ZipFile(llama, "w") as archive:
        archive.writestr(f"llama_cpp/{RECORD}", json.dumps({"options": options}))
    (folder / "numpy-2-cp311-cp311-manylinux_2_27_aarch64.manylinux_2_28_aarch64.whl").touch()
    return folder


def test_the_machine_that_it_was_made_for_may_go_on(wheels: Path) -> None:
    assert refusal(wheels, PI_5, 34) is None


def test_instructions_that_the_cpu_lacks_are_named(wheels: Path) -> None:
    why = refusal(wheels, PI_4, 36)
    assert why is not None
    assert "this build needs dotprod and fp16, Raspberry Pi 4 has neither" in why
    assert "edgeadapt setup board" in why


def test_another_c_library_is_named(wheels: Path) -> None:
    assert "need glibc 2.34, and this system has 2.31" in str(refusal(wheels, PI_5, 31))
    assert "this system has another one" in str(refusal(wheels, PI_5, None))


def test_the_tag_that_takes_the_oldest_glibc_counts() -> None:
    names = ["a-1-py3-none-any.whl", "b-1-cp311-cp311-manylinux_2_28_aarch64.manylinux_2_17_x.whl"]
    assert glibc_needed(names) == 17
    assert glibc_needed([*names, "c-1-py3-none-manylinux_2_31_aarch64.whl"]) == 31
    assert glibc_needed([]) == 17


def test_it_runs_on_the_standard_library_alone(wheels: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c",
         f"import sys, runpy; sys.path.insert(0, {str(ROOT)!r}); sys.argv[1:] = [{str(wheels)!r}]; "
         "runpy.run_module('edgeadapt.setup.board_check', run_name='__main__')"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    expected = 1 if (this_glibc() or 0) < 34 else 0  # on Arm it also depends on the CPU
    assert done.returncode in (expected, 1)
