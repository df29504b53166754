"""One server for all tests; each gets an empty cache there and an unbroken link."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.transports.adb_device import AdbDevice, AdbServer, adb_server
from tests.transports.link import Link
from tests.transports.ssh_server import SshServer, ssh_server, write_known_hosts

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


@pytest.fixture(scope="session")
def running_adb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdbServer]:
    with adb_server(tmp_path_factory.mktemp("adb")) as server:
        yield server


@pytest.fixture
def device(
    running_adb: AdbServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[AdbDevice]:
    """A device that listens on the network; adb is not connected to it yet."""
    monkeypatch.setenv("EDGEADAPT_ADB", running_adb.client)
    folder = tmp_path / "device"
    folder.mkdir()
    found = AdbDevice(folder)
    yield found
    running_adb.adb("disconnect")
    found.close()
