"""`edgeadapt bench --on adb://`: figures come back, and nothing is left, whatever happens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner, Result

from edgeadapt.bench.llama_bench import Imported
from edgeadapt.bench.measurement import Failure
from edgeadapt.cli import cli
from edgeadapt.errors import MissingSetupError
from edgeadapt.files import sha256_file
from edgeadapt.setup.llama_tools import installed_tool
from edgeadapt.transports import shell
from edgeadapt.transports.adb import AdbTransport
from tests.transports.adb_device import AdbDevice
from tests.transports.ssh_server import ROOT
from tests.transports.test_bench_over_ssh import await_true

try:
    TOOL: Path | None = installed_tool("llama-bench")  # before tests get a cache of their own
except MissingSetupError:
    TOOL = None

SHORT = ("--prompt-tokens=8", "--decode-tokens=4", "--repetitions=2")


def bench(device: AdbDevice, tool: Path | None, *arguments: object) -> Result:
    if tool is None:
        pytest.skip("no llama-bench here; type: edgeadapt setup llama-tools")
    where = ["--on", device.url, "--llama-bench", str(tool), "--json"]
    return CliRunner().invoke(cli, ["bench", *map(str, arguments), *where])


def failure(done: Result, number: int = 0) -> Failure:
    assert done.exit_code == 2
    found = Failure.model_validate(json.loads(done.stdout)[number])
    assert found.reason in done.stderr or number
    return found


def test_figures_come_back_and_nothing_stays_there(device: AdbDevice, tiny_gguf: Path) -> None:
    core = min(os.sched_getaffinity(0))
    done = bench(device, TOOL, tiny_gguf, *SHORT, "--threads", "1", "--cores", core)
    assert done.exit_code == 0, done.output
    (found,) = [Imported.model_validate(record) for record in json.loads(done.stdout)]
    assert (found.model, found.threads, found.cores) == (str(tiny_gguf), 1, (core,))
    assert [(s.tokens, s.tps.count) for s in (*found.prefill, *found.decode)] == [(8, 2), (4, 2)]
    assert found.peak_rss is not None and found.peak_rss > tiny_gguf.stat().st_size
    assert TOOL is not None
    hashes = {sha256_file(tiny_gguf), sha256_file(TOOL)}
    assert {p.name for p in device.artifacts.iterdir()} == hashes
    assert device.left_behind() == []


def test_it_runs_on_the_cores_that_were_named(device: AdbDevice, tiny_gguf: Path) -> None:
    """Printed by the kernel itself."""
    show = device.program("llama-bench", "grep ^Cpus_allowed_list /proc/self/status >&2; exit 3")
    core = max(os.sched_getaffinity(0))
    found = failure(bench(device, show, tiny_gguf, "--cores", core))
    assert f"(its last words: Cpus_allowed_list:\t{core})" in found.reason


@pytest.mark.parametrize(
    ("text", "outcome", "reason"),
    [
        ("kill -9 $$", "killed", "was ended by SIGKILL"),
        ("echo 'failed to allocate buffer' >&2; exit 1", "out_of_memory", "ran out of memory"),
        ("sleep 999", "timeout", "did not finish within 1 s and was ended there"),
        pytest.param(
            "echo hm >&2; exit 255",
            "failed",
            "exit code 255 and no result (its last words: hm)",
            marks=pytest.mark.e2e,
        ),
    ],
)
def test_how_it_ended_is_in_the_record(
    device: AdbDevice, tiny_gguf: Path, text: str, outcome: str, reason: str
) -> None:
    tool = device.program("llama-bench", text)
    found = failure(bench(device, tool, tiny_gguf, "--timeout", "1"))
    assert (found.outcome, found.artifact) == (outcome, str(tiny_gguf))
    assert reason in found.reason
    assert device.left_behind() == []


@pytest.mark.e2e  # for the seconds that it takes
def test_the_others_go_on(device: AdbDevice, tiny_gguf: Path, tmp_path: Path) -> None:
    if TOOL is None:
        pytest.skip("no llama-bench here; type: edgeadapt setup llama-tools")
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(tiny_gguf.read_bytes()[:-4096])
    program = f'case "$*" in *damaged*) exit 3; esac; exec {TOOL} "$@"'
    tool = device.program("llama-bench", program)
    other = tmp_path / "other.gguf"
    other.write_bytes(tiny_gguf.read_bytes())
    named = tmp_path / "damaged-name.gguf"
    named.write_bytes(tiny_gguf.read_bytes())
    done = bench(device, tool, named, other, *SHORT)
    assert failure(done).artifact == str(named)
    assert Imported.model_validate(json.loads(done.stdout)[1]).model == str(other)


def start(
    device: AdbDevice, artifact: Path, text: str = "echo $$ >{0}/pid; sleep 999 & wait"
) -> subprocess.Popen[bytes]:
    tool = device.program("llama-bench", text.format(device.folder))
    command = [sys.executable, "-m", "edgeadapt", "bench", str(artifact), "--json"]
    return subprocess.Popen(
        [*command, "--on", device.url, "--llama-bench", str(tool)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def await_far(device: AdbDevice) -> list[psutil.Process]:
    """Its processes there, once they run."""
    path = device.folder / "pid"
    await_true(lambda: path.exists() and path.read_text().endswith("\n"))
    there = psutil.Process(int(path.read_text()))
    await_true(lambda: len(there.children()) == 1)
    return [there, *there.children()]


def assert_clean(device: AdbDevice, far: list[psutil.Process]) -> None:
    await_true(lambda: not any(p.is_running() and p.status() != "zombie" for p in far))
    await_true(lambda: device.left_behind() == [])


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGINT, marks=pytest.mark.e2e),
        pytest.param(signal.SIGTERM, marks=pytest.mark.e2e),
        signal.SIGKILL,
    ],
)
def test_ended_here_it_ends_there(device: AdbDevice, tiny_gguf: Path, number: int) -> None:
    process = start(device, tiny_gguf)
    far = await_far(device)
    ours = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    stdout, _ = process.communicate()
    assert process.returncode == {2: 130, 15: 143, 9: -9}[number]
    if number != signal.SIGKILL:  # it waited for the other side to clean up
        assert device.left_behind() == []
        assert json.loads(stdout)[0]["outcome"] == "killed"
    assert_clean(device, far)
    await_true(lambda: not any(p.is_running() and p.status() != "zombie" for p in ours))


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGINT, marks=pytest.mark.e2e),
        pytest.param(signal.SIGTERM, marks=pytest.mark.e2e),
        signal.SIGKILL,
    ],
)
def test_ended_while_it_copies(device: AdbDevice, tiny_gguf: Path, number: int) -> None:
    device.slow.set()
    process = start(device, tiny_gguf)
    await_true(lambda: any(device.artifacts.glob("*.push.*")))
    ours = psutil.Process(process.pid).children(recursive=True)
    assert any("push" in p.cmdline() for p in ours)
    process.send_signal(number)
    stdout, _ = process.communicate()
    if number != signal.SIGKILL:
        (record,) = json.loads(stdout)
        assert record["outcome"] == "killed"
        assert "interrupted while files were copied" in record["reason"]
    await_true(lambda: not any(p.is_running() and p.status() != "zombie" for p in ours))
    await_true(lambda: device.left_behind() == [])


@pytest.mark.e2e  # for the seconds that it waits
def test_a_device_that_vanishes_while_it_copies(device: AdbDevice, tiny_gguf: Path) -> None:
    device.slow.set()
    process = start(device, tiny_gguf)
    await_true(lambda: any(device.artifacts.glob("*.push.*")))
    device.link.close()
    stdout, stderr = process.communicate()
    (record,) = json.loads(stdout)
    assert (record["outcome"], process.returncode) == ("failed", 2)
    assert f"{device.serial} vanished while files were copied" in record["reason"]
    assert record["reason"] in stderr.decode()
    await_true(lambda: device.left_behind() == [])


def test_a_device_that_vanishes_is_told(device: AdbDevice, tiny_gguf: Path) -> None:
    process = start(device, tiny_gguf)
    far = await_far(device)
    device.link.close()
    stdout, stderr = process.communicate()
    assert process.returncode == 2
    (record,) = json.loads(stdout)
    assert record["outcome"] == "failed"
    assert f"connection to {device.serial} was lost while it measured" in record["reason"]
    assert record["reason"] in stderr.decode()
    assert_clean(device, far)


@pytest.mark.e2e  # for the seconds that it waits
def test_after_silence_it_ends_there(device: AdbDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that is gone closes no connection: the program there has to notice by itself."""
    monkeypatch.setattr(shell, "BEAT_S", 8.0)
    monkeypatch.setattr(shell, "QUIET_S", 3.0)
    nap = device.program("nap", f"echo $$ >{device.folder}/pid; sleep 999 & wait")
    with AdbTransport(f"{device.url}{nap}") as there:
        assert there.run([], [], timeout_s=None).code == 143
    assert device.left_behind() == []


def test_fast_cores_of_a_device_are_found(
    device: AdbDevice, tiny_gguf: Path, tmp_path: Path
) -> None:
    fast = max(os.sched_getaffinity(0))
    device.has_one_fast_core(fast)
    text = (ROOT / "device_profiles/meta-quest-3.yaml").read_text()
    profile = tmp_path / "one-fast.yaml"
    profile.write_text(text.replace("count: {value: 2,", "count: {value: 1,"))
    done = bench(device, TOOL, tiny_gguf, *SHORT, "--device", profile)
    assert done.exit_code == 0, done.output
    (record,) = json.loads(done.stdout)
    assert (record["threads"], record["cores"]) == (2, [fast])


@pytest.mark.parametrize("words", [["--llama-bench", "x"], ["--cores", "1"]])
def test_options_that_need_another_machine(tiny_gguf: Path, words: list[str]) -> None:
    done = CliRunner().invoke(cli, ["bench", str(tiny_gguf), *words])
    assert done.exit_code == 2
    assert "are for --on ssh:// or adb://" in done.stderr


@pytest.mark.e2e  # for the seconds that it takes
def test_an_export_is_verified_there(device: AdbDevice, tiny_model: Path, tmp_path: Path) -> None:
    if TOOL is None:
        pytest.skip("no llama-bench here; type: edgeadapt setup llama-tools")
    out = tmp_path / "model.gguf"
    words = ["export", "--base", tiny_model, "--device", "laptop-x86", "--quant", "Q8_0"]
    words += ["--verify", device.url, "--llama-bench", TOOL, "--context", 64, "--out", out]
    done = CliRunner().invoke(cli, [*map(str, words), "--json"])
    assert done.exit_code == 0, done.output
    (attempt,) = json.loads(done.stdout)["verification"]["attempts"]
    measured = attempt["measured"]
    assert (measured["runtime"], measured["prompt_tokens"]) == ("llama-bench", 32)
    assert attempt["missed"] == [] and measured["decode_tps"] > 0 and measured["ttft_s"] > 0
    assert measured["memory_bytes"] > out.stat().st_size
    assert device.left_behind() == []
