"""The built-in model measured and talked to, as a user does it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeadapt.base_model import default_gguf
from edgeadapt.bench.measurement import Measurement
from edgeadapt.bench.table import render
from edgeadapt.jobs import Text, score

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="memory figures are from /proc"),
]
pytest.importorskip("llama_cpp")


def edgeadapt(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgeadapt", *arguments],
        input=given, capture_output=True, text=True, check=True, timeout=900,
    )  # fmt: skip


@pytest.fixture(scope="module")
def measured() -> Measurement:
    short = ("--prompt-tokens", "32", "--decode-tokens", "8", "--repetitions", "2")
    done = edgeadapt("bench", str(default_gguf()), *short, "--threads", "1", "--cold", "--json")
    (record,) = json.loads(done.stdout)
    return Measurement.model_validate(record)


def test_both_kinds_of_memory_add_up_to_the_kernels_own_peak(measured: Measurement) -> None:
    taken = measured.memory
    assert taken.at_peak is not None
    assert taken.peak_rss is not None
    assert abs(taken.at_peak.rss - taken.peak_rss) < 0.03 * taken.peak_rss


def test_the_peak_is_the_kernels_own_for_that_child(tmp_path: Path) -> None:
    """By wait4(2), whose figure is of the largest process below: the measured one."""
    out = tmp_path / "bench.json"
    short = (
        "--prompt-tokens",
        "128",
        "--decode-tokens",
        "8",
        "--repetitions",
        "2",
        "--threads",
        "1",
    )
    command = (
        sys.executable,
        "-m",
        "edgeadapt",
        "bench",
        str(default_gguf()),
        *short,
        "--out",
        out,
    )
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    (record,) = json.loads(out.read_text())
    memory = Measurement.model_validate(record).memory
    assert memory.at_peak is not None
    kernel = usage.ru_maxrss * 1024
    assert memory.peak_rss == pytest.approx(kernel, rel=0.03)
    assert memory.at_peak.rss == pytest.approx(kernel, rel=0.03)


def test_mapped_weights_are_file_backed_and_counted_once(measured: Measurement) -> None:
    floor = measured.memory.phases["before_load"]
    grown = measured.memory.phases["finished"]
    size = measured.artifact.size_bytes
    assert 0.9 * size < grown.file_backed - floor.file_backed < 1.1 * size
    assert grown.anonymous - floor.anonymous < size


def test_the_table_names_what_was_measured(measured: Measurement) -> None:
    text = render([measured])
    assert "Q4_1, 98 MB" in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_model_finds_sense_likelier_than_nonsense() -> None:
    path: Path = default_gguf()
    sense = score(path, [Text("The quick brown fox", " jumps over the lazy dog.")])
    nonsense = score(path, [Text("The quick brown fox", " dog the over lazy jumps.")])
    assert sense.perplexity * 5 < nonsense.perplexity


def test_a_second_turn_knows_the_first() -> None:
    lines = "My name is Ada.\nWhat is my name?\n"
    done = edgeadapt("chat", str(default_gguf()), "--max-tokens", "40", given=lines)
    assert "Ada" in done.stdout
    assert "�" not in done.stdout
