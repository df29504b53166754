"""One server for all tests of a module; each gets an empty cache there and an unbroken link."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.transports.ssh_server import Link, SshServer, ssh_server, write_known_hosts

SIZE = 24_000_000


@pytest.fixture(scope="session")
def running_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    with ssh_server(tmp_path_factory.mktemp("ssh")) as server:
        yield server


@pytest.fixture
def server(running_server: SshServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[SshServer]:
    shutil.rmtree(running_server.cache, ignore_errors=True)
    (running_server.folder / "pid").unlink(missing_ok=True)
    monkeypatch.setenv("EDGEADAPT_SSH", running_server.client)
    running_server.link.close()
    running_server.link = Link(running_server.port)
    host_key = (running_server.folder / "host_key.pub").read_text()
    write_known_hosts(running_server.folder, running_server.link.port, host_key)
    yield running_server
    running_server.link.cuts.clear()


@pytest.fixture
def big_file(tmp_path: Path) -> Path:
    """Random bytes, many times the 2 MB that SSH lets be under way unread."""
    path = tmp_path / "big.bin"
    path.write_bytes(os.urandom(SIZE))
    return path
