"""A child that dies, hangs or fails is reported in one sentence, and none is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from edgeadapt import worker_end
from edgeadapt.errors import CorruptFileError, InputError, RuntimeFailure
from edgeadapt.worker import run_job

pytest.importorskip("llama_cpp")


def bench_payload(path: Path, **changes: Any) -> dict[str, Any]:
    return {
        "artifact": str(path),
        "runtime": "llama-cpp",
        "threads": 1,
        "prompt_tokens": 8,
        "decode_tokens": 4,
        "repetitions": 1,
        "context": 256,
    } | changes


def endless(path: Path) -> dict[str, Any]:
    return bench_payload(path, repetitions=10**9)


def gone(pid: int) -> bool:
    for _ in range(100):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.1)
    return False


def test_a_job_gives_its_result_and_its_progress(tiny_gguf: Path) -> None:
    finished: list[float] = []
    pids: list[int] = []
    payload = bench_payload(tiny_gguf, repetitions=3)
    result = run_job("bench", payload, on_start=pids.append, on_progress=finished.append)
    assert len(result["ttft_s"]) == 3
    assert sum(finished) == 4  # the warm-up too
    assert not psutil.pid_exists(pids[0])


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="signals of POSIX")
@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (signal.SIGKILL, "running out of memory"),
        (signal.SIGILL, "edgeadapt setup llama-cpp"),
        (signal.SIGSEGV, "edgeadapt setup llama-cpp"),
    ],
)
def test_a_killed_child_is_named_with_its_signal(
    tiny_gguf: Path, number: signal.Signals, advice: str
) -> None:
    pids: list[int] = []

    def kill_when_running(_: float) -> None:
        os.kill(pids[0], number)

    with pytest.raises(RuntimeFailure, match=advice) as caught:
        run_job("bench", endless(tiny_gguf), on_start=pids.append, on_progress=kill_when_running)
    assert f"the llama-cpp bench process was ended by {number.name}" in str(caught.value)
    assert caught.value.outcome == ("killed" if number == signal.SIGKILL else "failed")
    assert "\n" not in str(caught.value)
    assert not psutil.pid_exists(pids[0])


def test_a_child_that_takes_too_long_is_stopped(tiny_gguf: Path) -> None:
    pids: list[int] = []
    with pytest.raises(RuntimeFailure, match="did not finish within 2 s") as caught:
        run_job("bench", endless(tiny_gguf), timeout_s=2, on_start=pids.append)
    assert caught.value.outcome == "timeout"
    assert not psutil.pid_exists(pids[0])


def test_errors_keep_their_type_and_text(tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF")
    with pytest.raises(CorruptFileError, match=r"bad\.gguf"):
        run_job("bench", bench_payload(bad))
    with pytest.raises(InputError, match="there is no runtime 'none'"):
        run_job("bench", bench_payload(bad, runtime="none"))


def test_an_unforeseen_failure_is_one_sentence(tiny_gguf: Path) -> None:
    payload = bench_payload(tiny_gguf)
    del payload["prompt_tokens"]
    with pytest.raises(RuntimeFailure, match=r"^the llama-cpp bench process failed: KeyError"):
        run_job("bench", payload)


PARENT = """
import sys
from edgeadapt.worker import run_job
import json
run_job("bench", json.loads(sys.argv[1]), on_start=lambda pid: print(pid, flush=True))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_child_ends_with_its_parent(tiny_gguf: Path, number: signal.Signals) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, json.dumps(endless(tiny_gguf))],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert parent.stdout is not None
    with parent, parent.stdout:
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
        parent.send_signal(number)
        parent.wait(timeout=30)
    assert gone(pid)


def test_a_file_named_like_a_module_is_not_imported(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('imported from the current folder')")
    monkeypatch.chdir(tmp_path)
    assert run_job("bench", bench_payload(tiny_gguf))["threads_in_use"] == 1


def test_a_large_job_does_not_block(tiny_gguf: Path) -> None:
    done: list[bool] = []

    def work() -> None:
        run_job("bench", bench_payload(tiny_gguf, unused="x" * 3_000_000))
        done.append(True)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(timeout=120)
    assert done


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts mappings on Linux alone")
def test_a_child_that_runs_out_of_memory_says_so(tiny_gguf: Path) -> None:
    payload = bench_payload(tiny_gguf, context=2**20)
    with pytest.raises(RuntimeFailure, match="ran out of memory") as caught:
        run_job("bench", payload, memory_limit=300_000_000)
    assert caught.value.outcome == "out_of_memory"
    assert run_job("bench", bench_payload(tiny_gguf), memory_limit=2_000_000_000)["ttft_s"]


def test_outcomes_are_told_apart() -> None:
    def outcome(code: int, *stderr: str, system_killed: bool = False) -> str:
        return worker_end.obituary("bench process", code, stderr, system_killed).outcome

    assert outcome(-9) == outcome(-15) == "killed"
    assert outcome(-9, system_killed=True) == "out_of_memory"
    assert outcome(-6, "terminate called after throwing 'std::bad_alloc'") == "out_of_memory"
    assert outcome(-4) == outcome(3) == "failed"
