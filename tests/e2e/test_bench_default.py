"""The built-in model measured and talked to, as a user does it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeadapt.base_model import default_gguf
from edgeadapt.bench import pagecache
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


WAIT4 = """
import os, subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(child.pid, 0)
child.returncode = os.waitstatus_to_exitcode(status)
print(child.returncode, usage.ru_maxrss * 1024)
"""


def test_the_peak_is_the_kernels_own_for_that_child(tmp_path: Path) -> None:
    """By wait4(2), whose figure is of the largest process below: the measured one.

    It starts at what the process had that forked, so one that has little forks.
    """
    out = tmp_path / "bench.json"
    short = "--prompt-tokens 128 --decode-tokens 8 --repetitions 2 --threads 1"
    command = [sys.executable, "-m", "edgeadapt", "bench", default_gguf(), *short.split()]
    done = subprocess.run(
        [sys.executable, "-c", WAIT4, *command, "--out", out],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    code, kernel = map(int, done.stdout.split())
    assert code == 0, done.stderr
    (record,) = json.loads(out.read_text())
    memory = Measurement.model_validate(record).memory
    assert memory.at_peak is not None
    assert memory.peak_rss == pytest.approx(kernel, rel=0.03)
    assert memory.at_peak.rss == pytest.approx(kernel, rel=0.03)


def test_a_file_larger_than_the_page_cache_may_be_is_counted_once(
    memory_limit: Callable[[int], list[str]], tmp_path: Path
) -> None:
    """Its pages are dropped and read again for every token, and none of them counts twice."""
    model, out = tmp_path / "model.gguf", tmp_path / "bench.json"
    options = ("--format", "gguf", "--quant", "F16", "--no-parity", "--out", str(model))
    edgeadapt("export", "--base", "default", *options)
    size = model.stat().st_size
    limit = size - (16 << 20)
    pagecache.drop([model])  # pages that are there already are charged to whoever read them
    short = "--prompt-tokens 8 --decode-tokens 4 --repetitions 1 --threads 1 --context 32"
    command = [sys.executable, "-m", "edgeadapt", "bench", model, *short.split(), "--out", out]
    done = subprocess.run(
        [*memory_limit(limit), sys.executable, "-c", WAIT4, *command],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    code, kernel = map(int, done.stdout.split())
    assert code == 0, done.stderr
    (record,) = json.loads(out.read_text())
    memory = Measurement.model_validate(record).memory
    assert memory.peak_rss == pytest.approx(kernel, rel=0.03)
    floor, loaded = memory.phases["before_load"], memory.phases["loaded"]
    assert loaded.file_backed - floor.file_backed > size / 3, "it was mapped"
    assert memory.peak_file_backed < size, "more of it than the page cache may hold"
    assert memory.peak_rss < limit + floor.file_backed  # libraries, charged to others


def test_mapped_weights_are_file_backed_and_counted_once(measured: Measurement) -> None:
    floor = measured.memory.phases["before_load"]
    grown = measured.memory.phases["finished"]
    size = measured.artifact.size_bytes
    assert 0.9 * size < grown.file_backed - floor.file_backed < 1.1 * size
    assert grown.anonymous - floor.anonymous < size


@pytest.mark.parametrize("threads", [1, 2])
def test_as_many_threads_compute_as_were_asked_for(threads: int) -> None:
    short = ("--prompt-tokens", "16", "--decode-tokens", "16", "--repetitions", "2")
    more = ("--depths", "0,64", "--threads", str(threads), "--json")
    done = edgeadapt("bench", str(default_gguf()), *short, *more)
    found = Measurement.model_validate(json.loads(done.stdout)[0])
    assert found.runtime.threads_in_use == found.runtime.threads_running == threads
    assert found.runtime.parameters == 134_515_008
    assert [depth.depth for depth in found.depths] == [0, 64]
    assert found.sustained is None


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
