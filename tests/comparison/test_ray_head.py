"""Comparisons on a cluster that `ray start --head` made, by each kind of address."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.comparison.test_ray import workplace, write_recipe

pytest.importorskip("llama_cpp")
pytest.importorskip("ray")

__all__ = ["workplace"]

LORA = {"method": "lora", "sweep": {"learning_rate": [1e-2, 1e-9]}}


@dataclass
class Head:
    """What a person knows of a head, and what their shell has."""

    port: int
    client_port: int
    environment: dict[str, str]

    def compare(self, workplace: Path, address: str, method: Any, **more: str) -> Any:
        """Type `edgeadapt compare` in that shell."""
        recipe = write_recipe(workplace, name="head", methods=["none", method], seeds=[0])
        runs = workplace / f"runs-{abs(hash(address))}"
        words = ["compare", str(recipe), "--runs", str(runs), "--ray", address, "--json"]
        return subprocess.run(
            [sys.executable, "-m", "edgeadapt", *words], env=self.environment | more,
            capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=400,
        )  # fmt: skip


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: there are sockets in it
    (folder / ".ray").mkdir()
    (folder / ".ray/auth_token").write_text(secrets.token_hex(32))
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    found = Head(free_port(), free_port(), own | {
        "HOME": str(folder), "RAY_TMPDIR": str(folder), "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    })  # fmt: skip
    words = [f"--port={found.port}", f"--ray-client-server-port={found.client_port}"]
    words += ["--num-cpus=2", f"--memory={2 << 30}", f"--object-store-memory={80 << 20}"]
    process = subprocess.Popen(
        [Path(sys.executable).with_name("ray"), "start", "--head", "--block", *words,
         "--include-dashboard=false"],
        env=found.environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "--block" in line:  # it is up
            break
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", found.client_port), timeout=1).close()
            break
        time.sleep(0.2)
    assert process.poll() is None, "".join(lines)
    yield found
    below = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    process.wait(60)
    _, alive = psutil.wait_procs(below, timeout=10)
    for child in alive:
        child.kill()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("address", "method"),
    [
        ("127.0.0.1:{port}", LORA),
        ("auto", "rag"),
        ("ray://127.0.0.1:{client_port}", LORA),
    ],
)
def test_each_kind_of_address_is_compared_on(
    workplace: Path, head: Head, address: str, method: Any
) -> None:
    address = address.format(port=head.port, client_port=head.client_port)
    done = head.compare(workplace, address, method)
    assert done.returncode == 0, done.stderr
    _, trial = json.loads(done.stdout)["trials"]
    if method is not LORA:
        assert trial["method"] == method
    else:
        sweep = trial["training"]["sweep"]
        assert sweep["chosen"] == {"learning_rate": 1e-2} and len(sweep["tried"]) == 2


@pytest.mark.e2e
def test_who_has_another_token_hears_where_it_is(workplace: Path, head: Head) -> None:
    done = head.compare(
        workplace, f"127.0.0.1:{head.port}", "rag", RAY_AUTH_TOKEN=secrets.token_hex(32)
    )
    assert done.returncode == 2
    assert "see that this machine has its Ray" in done.stderr
    assert "set RAY_AUTH_TOKEN to what `ray get-auth-token` says" in done.stderr


@pytest.mark.e2e
def test_who_has_no_token_hears_where_it_is(workplace: Path, head: Head, tmp_path: Path) -> None:
    done = head.compare(workplace, f"127.0.0.1:{head.port}", "rag", HOME=str(tmp_path))
    assert done.returncode == 2 and "asks for its token" in done.stderr
