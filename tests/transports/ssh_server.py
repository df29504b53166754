"""An OpenSSH server on loopback with throw-away keys."""

from __future__ import annotations

import contextlib
import getpass
import os
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.transports.link import Link, free_port

ROOT = Path(__file__).parents[2]


def find_sshd() -> str:
    """The server's absolute path, or skip."""
    places = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))
    found = os.environ.get("EDGEADAPT_TEST_SSHD") or shutil.which("sshd", path=places)
    if not found:
        pytest.skip("no sshd here; see .ci/run for how to unpack one without starting it")
    return found


def make_key(path: Path) -> str:
    """A new key pair; the public half."""
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return path.with_suffix(".pub").read_text()


def locked_without_pam() -> bool:
    """A `!` in the shadow file keeps even keys out, unless PAM decides."""
    with contextlib.suppress(OSError):
        for line in Path("/etc/shadow").read_text().splitlines():
            name, password, *_ = line.split(":")
            if name == getpass.getuser():
                return password.startswith("!")
    return False


@dataclass
class SshServer:
    """The far side: its folders, and how to call it."""

    folder: Path
    port: int
    client: str
    """What EDGEADAPT_SSH is set to."""
    link: Link
    programs: list[Path] = field(default_factory=list)

    @property
    def cache(self) -> Path:
        return self.folder / "far"

    @property
    def artifacts(self) -> Path:
        return self.cache / "artifacts"

    def url(self, program: Path | str = "", *, port: int | None = None) -> str:
        return f"ssh://{getpass.getuser()}@127.0.0.1:{port or self.link.port}{program}"

    def program(self, name: str, text: str) -> Path:
        """An executable there."""
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    def edgeadapt(self) -> Path:
        """This very edgeadapt, which first writes down its process id."""
        python = shlex.quote(sys.executable)
        return self.program(
            "edgeadapt",
            f"echo $$ >{self.folder}/pid\n"
            f'PYTHONPATH={shlex.quote(str(ROOT))} exec {python} -m edgeadapt "$@"',
        )

    def left_behind(self) -> list[str]:
        """Whatever is in its cache, apart from artifacts."""
        paths = [p for p in self.cache.rglob("*") if p.is_symlink() or not p.is_dir()]
        folders = list((self.cache / "work").glob("*"))
        return [str(p) for p in (*paths, *folders) if self.artifacts not in p.parents]


@contextlib.contextmanager
def ssh_server(folder: Path) -> Iterator[SshServer]:
    """Start one; skip where there is none, or where it does not start."""
    sshd, port = find_sshd(), free_port()
    host_key, key = make_key(folder / "host_key"), make_key(folder / "key")
    (folder / "authorized_keys").write_text(key)
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host_key\nPidFile none\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\nStrictModes no\n"
        f"PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\n"
        f"SetEnv EDGEADAPT_CACHE={folder}/far\nMaxStartups 100\nLogLevel ERROR\n"
        + ("UsePAM yes\n" if locked_without_pam() else "")
    )
    checked = subprocess.run(
        [sshd, "-t", "-f", str(folder / "sshd_config")], capture_output=True, text=True, check=False
    )
    if checked.returncode:
        pytest.skip(f"{sshd} does not start here: {checked.stderr.strip()}")
    link = Link(port)
    write_known_hosts(folder, link.port, host_key)
    (folder / "ssh_config").write_text(
        f"KexAlgorithms curve25519-sha256\n"  # the default is four times slower
        f"IdentityFile {folder}/key\nIdentitiesOnly yes\nIdentityAgent none\n"
        f"UserKnownHostsFile {folder}/known_hosts\nGlobalKnownHostsFile /dev/null\n"
    )
    with (folder / "sshd.log").open("wb") as log:
        process = subprocess.Popen(
            [sshd, "-D", "-e", "-f", str(folder / "sshd_config")],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        await_banner(port)
        yield SshServer(folder, port, f"ssh -F {shlex.quote(str(folder / 'ssh_config'))}", link)
    finally:
        link.close()
        process.terminate()
        process.wait()


def write_known_hosts(folder: Path, port: int, host_key: str) -> None:
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}")


def await_banner(port: int) -> None:
    for _ in range(200):
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", port), timeout=5) as connection,
        ):
            if connection.recv(4) == b"SSH-":
                return
        threading.Event().wait(0.05)
    raise AssertionError("sshd does not answer")
