"""`edgeadapt bench --on ssh://`: the figures come back, and nothing is left, whatever happens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner, Result

from edgeadapt.bench.measurement import Measurement
from edgeadapt.cli import cli
from edgeadapt.errors import HostFailure
from edgeadapt.files import sha256_file
from edgeadapt.transports import shell
from edgeadapt.transports.ssh import SshTransport
from tests.transports.ssh_server import ROOT, SshServer

SHORT = ("--prompt-tokens", 8, "--decode-tokens", 4, "--repetitions", 1, "--threads", 1)
ENDLESS = "--prompt-tokens=8 --decode-tokens=8 --repetitions=9999999 --threads=1"


def bench(server: SshServer, *arguments: object) -> Result:
    where = ("--on", server.url(server.edgeadapt()))
    return CliRunner().invoke(cli, ["bench", *map(str, arguments), *where, "--json"])


def await_true(what: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait, and fail if it never comes; how long it takes is not judged."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


def far_processes(server: SshServer) -> list[psutil.Process]:
    """edgeadapt there, and what it started."""
    path = server.folder / "pid"
    if not path.exists() or not path.read_text().strip():
        return []
    try:
        there = psutil.Process(int(path.read_text()))
        return [there, *there.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def test_figures_come_back_and_nothing_stays_there(server: SshServer, tiny_gguf: Path) -> None:
    done = bench(server, tiny_gguf, *SHORT)
    assert done.exit_code == 0, done.output
    (record,) = json.loads(done.stdout)
    measured = Measurement.model_validate(record)
    assert measured.artifact.path == str(tiny_gguf)
    assert measured.artifact.sha256 == sha256_file(tiny_gguf)
    assert (measured.settings.prompt_tokens, measured.settings.decode_tokens) == (8, 4)
    assert measured.decode_tps.median > 0
    assert [p.name for p in server.artifacts.iterdir()] == [measured.artifact.sha256]
    assert server.left_behind() == []


def test_an_export_is_verified_there(server: SshServer, tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.gguf"
    words = ["export", "--base", tiny_model, "--device", "laptop-x86", "--quant", "Q8_0"]
    words += ["--verify", server.url(server.edgeadapt()), "--context", 64, "--out", out, "--json"]
    done = CliRunner().invoke(cli, [*map(str, words)])
    assert done.exit_code == 0, done.output
    (attempt,) = json.loads(done.stdout)["verification"]["attempts"]
    assert attempt["predicted"]["quantization"] == "Q8_0"
    assert attempt["measured"]["prompt_tokens"] == 32 and attempt["missed"] == []
    assert out.is_file() and server.left_behind() == []


def test_what_fails_there_is_told_here(server: SshServer, tiny_gguf: Path) -> None:
    done = bench(server, tiny_gguf, *SHORT, "--context", 4)
    assert done.exit_code == 2
    assert f"Error: on {SshTransport(server.url()).name}: 8 prompt and 4 decode" in done.stderr
    assert server.left_behind() == []


def start(
    server: SshServer, artifact: Path
) -> tuple[subprocess.Popen[bytes], list[psutil.Process]]:
    """An endless benchmark in a process of its own, once it computes there."""
    command = [sys.executable, "-m", "edgeadapt", "bench", str(artifact), *ENDLESS.split()]
    process = subprocess.Popen(
        [*command, "--on", server.url(server.edgeadapt())],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    await_true(lambda: len(far_processes(server)) > 1 or process.poll() is not None)
    assert process.poll() is None, process.stderr
    return process, far_processes(server)


def assert_clean(server: SshServer, far: list[psutil.Process]) -> None:
    await_true(lambda: not any(p.is_running() and p.status() != "zombie" for p in far))
    await_true(lambda: server.left_behind() == [])


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGINT, marks=pytest.mark.e2e),
        pytest.param(signal.SIGTERM, marks=pytest.mark.e2e),
        signal.SIGKILL,
    ],
)
def test_ended_here_it_ends_there(server: SshServer, tiny_gguf: Path, number: int) -> None:
    process, far = start(server, tiny_gguf)
    process.send_signal(number)
    process.communicate()
    assert process.returncode == {2: 130, 15: 143, 9: -9}[number]
    if number != signal.SIGKILL:  # it waited for the other side to clean up
        assert server.left_behind() == []
    assert_clean(server, far)


def test_a_lost_connection_is_told_and_ends_it_there(server: SshServer, tiny_gguf: Path) -> None:
    process, far = start(server, tiny_gguf)
    server.link.cut()
    _, stderr = process.communicate()
    assert process.returncode == 2
    last = stderr.decode().splitlines()[-1]
    assert last.startswith("Error: the connection to")
    assert "was lost while it measured" in last
    assert_clean(server, far)


@pytest.mark.e2e  # for the seconds that it waits
def test_after_silence_it_ends_there(
    server: SshServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Pulled cables close no connection: the program there has to notice by itself."""
    monkeypatch.setattr(shell, "BEAT_S", 0.2)
    monkeypatch.setattr(shell, "QUIET_S", 3.0)
    nap = server.program("nap", f"echo $$ >{server.folder}/pid; sleep 5; {sys.executable} -V")
    with SshTransport(server.url(nap)) as there:
        assert (
            b"Python" in there.run([], [], timeout_s=None).stdout
        )  # longer than the silence allowed
        monkeypatch.setattr(shell, "BEAT_S", 8.0)
        assert there.run([], [], timeout_s=None).code == 143
    assert_clean(server, far_processes(server))


@pytest.mark.e2e  # for the programs that it starts
def test_one_at_a_time_but_the_dead_do_not_count(server: SshServer, tiny_gguf: Path) -> None:
    process, far = start(server, tiny_gguf)
    again = bench(server, tiny_gguf, *SHORT)
    assert again.exit_code == 2
    assert "is measuring already, for" in again.stderr
    process.kill()
    process.communicate()
    assert_clean(server, far)
    (server.cache / "lease").symlink_to(f"{os.getpid()}:another boot:someone")
    (server.cache / "work/left").mkdir(parents=True)
    assert bench(server, tiny_gguf, *SHORT).exit_code == 0
    assert server.left_behind() == []


def test_the_time_given_is_kept(server: SshServer) -> None:
    nap = server.program("nap", f"echo $$ >{server.folder}/pid; sleep 999")
    with (
        SshTransport(server.url(nap)) as there,
        pytest.raises(HostFailure, match="did not finish within 1 s and was ended there"),
    ):
        there.run([], [], timeout_s=1.0)
    assert_clean(server, far_processes(server))
