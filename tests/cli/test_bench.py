"""`edgeadapt bench`: options, and a run that fails is a record with its outcome."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

from edgeadapt.bench.measurement import Failure, Measurement
from edgeadapt.bench.series import thread_sweep
from edgeadapt.cli import bench_options, cli

SHORT = ["--prompt-tokens", "8", "--decode-tokens", "4", "--repetitions", "1", "--json"]


def bench(*arguments: object) -> Any:
    return CliRunner().invoke(cli, ["bench", *map(str, arguments)])


@pytest.mark.skipif(sys.platform != "linux", reason="counters of Linux")
def test_threads_depths_and_layers_are_measured_and_told(tiny_gguf: Path) -> None:
    done = bench(tiny_gguf, *SHORT, "--threads", "1,2", "--depths", "0,30", "--gpu-layers", "all")
    assert done.exit_code == 0, done.output
    found = [Measurement.model_validate(record) for record in json.loads(done.stdout)]
    assert [m.runtime.threads_in_use for m in found] == [1, 2]
    assert found[0].runtime.threads_running == 1
    for m in found:
        assert [d.depth for d in m.depths] == [0, 30]
        assert m.depths[0].fill_s is None
        assert m.depths[1].decode_tps.count == 1
        assert (m.runtime.gpu_layers, m.runtime.gpus) == (0, ())  # a build for the CPU
        assert m.runtime.parameters
        assert m.background is not None
        assert m.background.others is not None
        assert m.outcome == "ok"


def test_layers_on_a_gpu_that_is_not_there_are_told(tiny_gguf: Path) -> None:
    text = bench(tiny_gguf, *SHORT[:-1], "--gpu-layers", "2", "--threads", "1").stdout
    assert "No GPU was seen: 2 layers asked for on a GPU ran on the CPU" in text


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts mappings on Linux alone")
def test_a_run_without_memory_is_a_record_and_the_others_go_on(
    tiny_gguf: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bench.json"
    limited = ("--context", 2**20, "--memory-limit", "300MB", "--threads", 1, "--out", out)
    done = bench(tiny_gguf, tiny_gguf, *SHORT, *limited)
    assert done.exit_code == 2
    assert "ran out of memory" in done.stderr
    records = json.loads(done.stdout)
    assert records == json.loads(out.read_text())
    for record in records:
        assert Failure.model_validate(record).outcome == "out_of_memory"


def test_a_run_that_takes_too_long_is_a_record(tiny_gguf: Path) -> None:
    endless = ("--decode-tokens", 4, "--repetitions", 10**7, "--timeout", 2)
    done = bench(tiny_gguf, "--json", "--threads", 1, *endless)
    assert done.exit_code == 2
    (record,) = json.loads(done.stdout)
    assert record["outcome"] == "timeout"
    assert "did not finish within 2 s" in record["reason"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="signals of POSIX")
@pytest.mark.parametrize(
    ("victim", "number", "code"),
    [
        ("child", signal.SIGKILL, 2),
        ("parent", signal.SIGTERM, 143),
        ("parent", signal.SIGINT, 130),
        ("parent", signal.SIGKILL, -9),
    ],
)
def test_a_killed_bench_says_so_and_leaves_nothing(
    tiny_gguf: Path, tmp_path: Path, victim: str, number: signal.Signals, code: int
) -> None:
    out = tmp_path / "bench.json"
    command = [sys.executable, "-m", "edgeadapt", "bench", str(tiny_gguf), "--json"]
    endless = ["--repetitions", str(10**7), "--threads", "1", "--out", str(out)]
    with subprocess.Popen(
        [*command, *endless], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        child = _child_at_work(process.pid)
        os.kill(child.pid if victim == "child" else process.pid, number)
        stdout, _ = process.communicate(timeout=60)
    assert process.returncode == code
    psutil.wait_procs([child], timeout=20)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    if code == -9:  # it could write nothing; nor does it leave half of anything
        assert list(tmp_path.iterdir()) == []
        return
    (record,) = json.loads(stdout)
    assert record["outcome"] == "killed"
    assert json.loads(out.read_text()) == [record]
    assert list(tmp_path.iterdir()) == [out]


def _child_at_work(pid: int) -> psutil.Process:
    """The measured process, once it computes."""
    for _ in range(600):
        for child in psutil.Process(pid).children():
            if child.cpu_times().user > 0.3:
                return child
        time.sleep(0.05)
    raise AssertionError("no child began to compute")


def test_options_are_read() -> None:
    assert thread_sweep(1) == [1]
    assert thread_sweep(6) == [1, 2, 4, 6]
    assert thread_sweep(8) == [1, 2, 4, 8]
    assert bench_options.read_threads("2,4,2") == (2, 4)
    assert bench_options.read_depths("0,512") == (0, 512)
    assert str(bench_options.read_threads("sweep")) == "sweep"  # for `bench` elsewhere
    assert bench_options.read_duration("10m") == 600
    assert bench_options.read_duration("1.5h") == 5400
    assert bench_options.read_gpu_layers("all") == bench_options.read_gpu_layers("-1") == -1
    assert bench_options.read_size("1GiB") == 2**30


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--threads", "0"),
        ("--threads", "1,x"),
        ("--depths", "-1"),
        ("--sustain", "0"),
        ("--sustain", "soon"),
        ("--gpu-layers", "-3"),
        ("--memory-limit", "much"),
        ("--device", "no-such-board"),
    ],
)
def test_what_cannot_be_read_is_refused(tiny_gguf: Path, option: str, value: str) -> None:
    done = bench(tiny_gguf, option, value)
    assert done.exit_code == 2
    assert value in done.stderr


def test_layers_are_for_llama_cpp(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    done = bench(tmp_path, "--runtime", "torch", "--gpu-layers", "1")
    assert done.exit_code == 2
    assert "torch takes no --gpu-layers" in done.stderr
