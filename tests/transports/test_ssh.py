"""Copying, resuming and being refused, against a real OpenSSH server."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgeadapt.errors import HostFailure, InputError
from edgeadapt.transports import shell
from edgeadapt.transports.base import NeededFile, open_transport
from edgeadapt.transports.place import needed_files
from edgeadapt.transports.ssh import SshAddress, SshTransport
from tests.transports.conftest import SIZE
from tests.transports.ssh_server import SshServer, make_key, write_known_hosts


def needed(path: Path) -> NeededFile:
    (file,) = needed_files(path, "0")[1]
    return file


def place(server: SshServer, path: Path) -> int:
    """Copy a file, and check what is there now."""
    with SshTransport(server.url("/bin/true")) as there:
        copied = there.place([needed(path)])
    (found,) = server.artifacts.iterdir()
    assert found.name == needed(path).sha256
    assert found.read_bytes() == path.read_bytes()
    return copied


def test_a_file_is_copied_once(server: SshServer, big_file: Path) -> None:
    assert place(server, big_file) == SIZE
    assert SIZE < server.link.upstream < SIZE * 1.1
    assert place(server, big_file) == 0
    assert server.link.upstream < SIZE * 1.1


def test_a_broken_copy_goes_on_where_it_stopped(server: SshServer, big_file: Path) -> None:
    server.link.cuts = [8_000_000, 9_000_000]
    assert place(server, big_file) == SIZE
    assert server.link.cuts == []
    assert server.link.upstream < SIZE * 1.4  # from the start again, it would be 1.7


def test_a_later_call_goes_on_too(
    server: SshServer, big_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shell, "_TRIES", 1)
    server.link.cuts = [12_000_000]
    with (
        pytest.raises(HostFailure, match="broke off 1 times"),
        SshTransport(server.url("/bin/true")) as there,
    ):
        there.place([needed(big_file)])
    copied = place(server, big_file)
    assert SIZE / 2 <= copied < SIZE * 2 / 3


def test_a_link_that_always_breaks_is_given_up(server: SshServer, big_file: Path) -> None:
    server.link.cuts = [20_000] * 50
    with SshTransport(server.url("/bin/true")) as there, pytest.raises(HostFailure, match="broke"):
        there.place([needed(big_file)])
    assert len(server.link.cuts) > 30


@pytest.mark.parametrize("name", ["{}", "{}.part"])
def test_other_bytes_under_its_name_are_replaced(
    server: SshServer, big_file: Path, name: str
) -> None:
    server.artifacts.mkdir(parents=True, exist_ok=True)  # a script of a broken link may start late
    (server.artifacts / name.format(needed(big_file).sha256)).write_bytes(os.urandom(1000))
    assert place(server, big_file) == SIZE


def test_what_a_login_shell_prints_is_no_answer(server: SshServer) -> None:
    echo = server.program("echo", 'echo "<$*>"; pwd; ls')
    with SshTransport(server.url(echo)) as there:
        output = there.run(["a", "it's $HOME", "-x"], [], timeout_s=None).stdout.decode()
    said, folder = output.splitlines()
    assert said == "<a it's $HOME -x>"
    assert folder.startswith(str(server.cache / "work"))
    assert server.left_behind() == []


def test_files_lie_under_their_names_while_it_runs(server: SshServer, tmp_path: Path) -> None:
    folder = tmp_path / "a model"
    (folder / "part").mkdir(parents=True)
    (folder / "part/x").write_text("same")
    (folder / "y").write_text("same")
    name, files = needed_files(folder, "0")
    show = server.program("show", 'find . -type f | sort; cat "$1/y"')
    with SshTransport(server.url(show)) as there:
        assert there.place(files) == 4
        output = there.run([name], files, timeout_s=None).stdout.decode()
    assert output.splitlines() == ["./0/a model/part/x", "./0/a model/y", "same"]


def test_an_unknown_host_key_is_refused(server: SshServer) -> None:
    (server.folder / "known_hosts").write_text("")
    with pytest.raises(HostFailure, match=r"host key of .* is not known; type `ssh -l"):
        SshTransport(server.url()).connect()
    assert not server.cache.exists()
    assert (server.folder / "known_hosts").read_text() == ""


def test_another_host_key_is_refused(server: SshServer, tmp_path: Path) -> None:
    write_known_hosts(server.folder, server.link.port, make_key(tmp_path / "other"))
    with pytest.raises(HostFailure, match="not the one that is known"):
        SshTransport(server.url()).connect()
    assert not server.cache.exists()


def test_without_a_key_it_never_asks_for_a_password(
    server: SshServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_key(tmp_path / "other")
    text = (server.folder / "ssh_config").read_text()
    (tmp_path / "config").write_text(text.replace(f"{server.folder}/key", str(tmp_path / "other")))
    monkeypatch.setenv("EDGEADAPT_SSH", f"ssh -F {tmp_path}/config")
    with pytest.raises(HostFailure, match="passwords are never asked for; type: ssh-copy-id"):
        SshTransport(server.url()).connect()


def test_nobody_there(server: SshServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.link.close()
    with pytest.raises(HostFailure, match=r"cannot be reached: .*refused"):
        SshTransport(server.url()).connect()
    monkeypatch.setenv("EDGEADAPT_SSH", "/no/such/ssh")
    with pytest.raises(HostFailure, match="/no/such/ssh cannot be started"):
        SshTransport(server.url()).connect()


def test_no_program_there(server: SshServer) -> None:
    with pytest.raises(HostFailure, match="has no program /no/such/program"):
        SshTransport(server.url("/no/such/program")).connect()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ssh://user:secret@host", "passwords are not taken"),
        ("ssh://-oProxyCommand=x", "malformed"),
        ("ssh://-lroot@host", "malformed"),
        ("ssh://host:0", "no port 0"),
        ("ssh://host:99999", "no port 99999"),
        ("ssh://", "malformed"),
        ("ssh://host?x", "malformed"),
        ("telnet://host", "no way to another machine; expected ssh://"),
        ("host", "no way to another machine"),
    ],
)
def test_urls_that_are_refused(url: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        open_transport(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("ssh://Board", SshAddress("Board", None, None, None)),
        ("ssh://pi@192.168.0.7:2222/", SshAddress("192.168.0.7", "pi", 2222, None)),
        ("ssh://pi@board/~/e/bin/edgeadapt", SshAddress("board", "pi", None, "/~/e/bin/edgeadapt")),
        ("ssh://[fe80::1%eth0]:22", SshAddress("fe80::1%eth0", None, 22, None)),
    ],
)
def test_urls_that_are_understood(url: str, address: SshAddress) -> None:
    assert SshAddress.parse(url) == address
