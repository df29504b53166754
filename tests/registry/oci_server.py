"""Debian's `docker-registry` on loopback, with a storage of its own, and a link that can break."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.transports.link import Link, free_port

USER, PASSWORD = "ada", "secret"
_HTPASSWD = "ada:$2b$04$WwzhLnVSW81P.qWePIxhbOsND4lm/EFcq4nQxlbAzLGKvpGu106Du\n"
_PUT = re.compile(r'"PUT /v2/\S+/blobs/uploads/\S* HTTP/1\.1" (\d+)')


def find_registry() -> str:
    """The server's program, or skip."""
    found = os.environ.get("EDGEADAPT_TEST_REGISTRY") or shutil.which("docker-registry")
    if not found:
        pytest.skip("no docker-registry here; see .ci/run for how to unpack one")
    return found


@dataclass
class OciServer:
    """A registry, and what it has stored and done."""

    folder: Path
    link: Link

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.link.port}"

    def uploads(self) -> int:
        """Contents that it took since it was started."""
        log = (self.folder / "log").read_text(errors="replace")
        return sum(status == "201" for status in _PUT.findall(log))

    def blob(self, sha256: str) -> Path:
        """Where its storage keeps a content."""
        blobs = self.folder / "storage/docker/registry/v2/blobs/sha256"
        return blobs / sha256[:2] / sha256 / "data"


@contextlib.contextmanager
def oci_server(folder: Path, *, login: bool = False) -> Iterator[OciServer]:
    """Start one, which asks everybody for a login if told so; skip where there is none."""
    program, port = find_registry(), free_port()
    config = {
        "version": "0.1",
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "storage")}},
        "http": {"addr": f"127.0.0.1:{port}", "net": "tcp"},
    }
    if login:
        (folder / "htpasswd").write_text(_HTPASSWD)
        config["auth"] = {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}}
    (folder / "config.yml").write_text(json.dumps(config))  # JSON is YAML
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, "serve", str(folder / "config.yml")],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    link = Link(port)
    try:
        _await_answer(f"http://127.0.0.1:{port}/v2/", process)
        yield OciServer(folder, link)
    finally:
        link.close()
        process.terminate()
        process.wait()


def _await_answer(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(200):
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except urllib.error.HTTPError:  # it asks for a login
            return
        except OSError:
            assert process.poll() is None, "docker-registry ended"
            threading.Event().wait(0.05)
        else:
            return
    raise AssertionError("docker-registry does not answer")
