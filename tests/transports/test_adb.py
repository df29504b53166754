"""Copying, resuming and being refused: the real adb, and a stand-in for the device."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import psutil
import pytest

from edgeadapt.errors import HostFailure, InputError, MissingSetupError
from edgeadapt.transports import adb, shell
from edgeadapt.transports.adb import AdbTransport
from edgeadapt.transports.base import NeededFile, open_transport
from edgeadapt.transports.cores import fastest, mask, parse_cores
from edgeadapt.transports.place import needed_files, program_files
from tests.transports.adb_device import AdbDevice, AdbServer
from tests.transports.link import Link

SIZE, PIECE = 3_000_000, 500_000


@pytest.fixture
def big_file(tmp_path: Path) -> Path:
    path = tmp_path / "big.bin"
    path.write_bytes(os.urandom(SIZE))
    return path


def needed(path: Path) -> NeededFile:
    (file,) = needed_files(path, "0")[1]
    return file


def place(device: AdbDevice, path: Path) -> int:
    """Copy a file, and check what is there now."""
    with AdbTransport(f"{device.url}/bin/true") as there:
        copied = there.place([needed(path)])
    (found,) = device.artifacts.iterdir()
    assert found.name == needed(path).sha256
    assert found.read_bytes() == path.read_bytes()
    assert device.left_behind() == []
    return copied


def test_a_file_is_pushed_once(
    device: AdbDevice, big_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adb, "_PIECE", 1_250_000)
    assert place(device, big_file) == SIZE
    assert device.pushed == [1_250_000, 1_250_000, 500_000]
    assert place(device, big_file) == 0
    assert len(device.pushed) == 3


def test_a_broken_copy_goes_on_where_it_stopped(
    device: AdbDevice, big_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adb, "_PIECE", PIECE)
    device.link.cuts = [1_600_000]
    assert place(device, big_file) == SIZE
    assert device.link.cuts == []
    assert device.link.upstream < SIZE * 1.25  # from the start again, it would be 1.5


@pytest.mark.e2e  # for the seconds that it takes
def test_a_later_call_goes_on_too(
    device: AdbDevice, big_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adb, "_PIECE", PIECE)
    monkeypatch.setattr(shell, "_TRIES", 1)
    device.link.cuts = [1_600_000]
    with (
        pytest.raises(HostFailure, match=r"broke off 1 times: .*; what is there already"),
        AdbTransport(f"{device.url}/bin/true") as there,
    ):
        there.place([needed(big_file)])
    copied = place(device, big_file)
    assert SIZE / 3 <= copied < SIZE * 2 / 3


def test_a_device_that_does_not_come_back(
    device: AdbDevice, big_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adb, "_BACK_S", 0.2)
    with AdbTransport(f"{device.url}/bin/true") as there:
        device.link.close()
        with pytest.raises(HostFailure, match="cannot be reached"):
            there.place([needed(big_file)])


@pytest.mark.parametrize("name", ["{}", "{}.part"])
def test_other_bytes_under_its_name_are_replaced(
    device: AdbDevice, tmp_path: Path, name: str
) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(100_000))
    device.artifacts.mkdir(parents=True)
    (device.artifacts / name.format(needed(file).sha256)).write_bytes(os.urandom(1000))
    assert place(device, file) == 100_000


def test_full_storage_is_told(device: AdbDevice, big_file: Path) -> None:
    device.room = 1_000_000
    with (
        AdbTransport(f"{device.url}/bin/true") as there,
        pytest.raises(HostFailure, match=r"could not store big\.bin: .*No space left on device"),
    ):
        there.place([needed(big_file)])
    assert device.left_behind() == []


@pytest.mark.e2e  # for the seconds that it waits for the other
def test_what_another_one_copies_is_left_to_it(
    device: AdbDevice, big_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shell, "_TRIES", 1)
    other = subprocess.Popen(["sh", "-c", "sleep 999 & wait", "edgeadapt-on"])
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    device.artifacts.mkdir(parents=True)
    lease = device.artifacts / f"{needed(big_file).sha256}.lease"
    lease.symlink_to(f"{other.pid}:{boot}:someone")
    try:
        with (
            AdbTransport(f"{device.url}/bin/true") as there,
            pytest.raises(HostFailure, match=r"is being copied to .* already, for someone"),
        ):
            there.place([needed(big_file)])
    finally:
        psutil.Process(other.pid).children()[0].kill()
        other.wait()
    assert device.pushed == []


def test_what_a_program_says_comes_back_as_it_is(device: AdbDevice) -> None:
    echo = device.program("echo", "printf '<%s>' \"$@\"; printf '\\0\\r\\n'; echo oh >&2; exit 7")
    with AdbTransport(f"{device.url}{echo}") as there:
        ended = there.run(["a", "it's $HOME", "-x"], [], timeout_s=None)
    assert ended.stdout == b"<a><it's $HOME><-x>\0\r\n"
    assert (ended.code, ended.last_words) == (7, "oh")
    assert device.left_behind() == []


def test_a_program_is_brought_with_its_libraries(device: AdbDevice, tmp_path: Path) -> None:
    (tmp_path / "build/bin").mkdir(parents=True)
    (tmp_path / "build/lib").mkdir()
    program = tmp_path / "build/bin/llama-bench"
    program.write_text("#!/bin/sh\nls; echo $LD_LIBRARY_PATH\n")
    for name in ("bin/libggml.so", "lib/libllama.so.0", "lib/libggml.so", "lib/libc.so"):
        (tmp_path / "build" / name).write_text(name)
    files = program_files(program)
    assert files[0].name == "llama-bench"
    libraries = {file.name: file.path.parent.name for file in files[1:]}
    assert libraries == {"libllama.so.0": "lib", "libggml.so": "bin"}
    there = AdbTransport(device.url)
    there.bring(program)
    with there:
        there.place(files)
        said = there.run([], files, timeout_s=None).stdout.decode().split()
    assert sorted(said[:3]) == ["libggml.so", "libllama.so.0", "llama-bench"]
    assert said[3].startswith(str(device.cache / "work"))


def test_the_only_device_needs_no_serial(device: AdbDevice, running_adb: AdbServer) -> None:
    with pytest.raises(HostFailure, match="adb sees no device; turn on developer mode"):
        AdbTransport("adb://").connect()
    running_adb.adb("connect", device.serial)
    with AdbTransport("adb:///bin/true") as there:
        assert there.name == device.serial
    assert device.serial in running_adb.adb("devices")  # it was connected before
    another = Link(device.link.port)
    running_adb.adb("connect", f"127.0.0.1:{another.port}")
    with pytest.raises(HostFailure, match=r"adb sees 2 devices: .*; name one: --on adb://127"):
        AdbTransport("adb://").connect()
    with pytest.raises(HostFailure, match=f"adb sees no device R58; it sees .*{device.serial}"):
        AdbTransport("adb://R58").connect()
    another.close()


def test_our_own_connection_is_taken_back(device: AdbDevice, running_adb: AdbServer) -> None:
    with AdbTransport(f"{device.url}/bin/true"):
        assert device.serial in running_adb.adb("devices")
    assert device.serial not in running_adb.adb("devices")


def test_who_did_not_allow_it_is_told_how(
    device: AdbDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.authorizes = False
    with pytest.raises(HostFailure, match="is unauthorized; unlock it, put a headset on"):
        AdbTransport(device.url).connect()


def test_nobody_there(device: AdbDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    device.link.close()
    with pytest.raises(HostFailure, match=r"cannot be reached: .*refused"):
        AdbTransport(device.url).connect()
    monkeypatch.setenv("EDGEADAPT_ADB", "/no/such/adb -P 5038")
    with pytest.raises(MissingSetupError, match=r"/no/such/adb not found; .* sudo apt install adb"):
        AdbTransport(device.url).connect()


def test_no_program_there(device: AdbDevice) -> None:
    with pytest.raises(HostFailure, match="has no program /no/such/program"):
        AdbTransport(f"{device.url}/no/such/program").connect()
    with pytest.raises(HostFailure, match=f"--on {device.url}/path/to/it, or bring one along"):
        AdbTransport(device.url).connect()


@pytest.mark.parametrize("url", ["adb://-s", "adb://a b", "adb://x?y", "adb://x;reboot"])
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(InputError, match="malformed; expected adb://"):
        open_transport(url)


@pytest.mark.parametrize(
    ("text", "cores"), [("4-7", (4, 5, 6, 7)), ("7,0", (0, 7)), ("0, 2-3", (0, 2, 3))]
)
def test_cores_that_are_understood(text: str, cores: tuple[int, ...]) -> None:
    assert parse_cores(text) == cores


@pytest.mark.parametrize(
    "text", ["", "4-", "-4", "7-4", "f0", "0x3", "1024", "4--7", "99999999999"]
)
def test_cores_that_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected: cores such as|there are no cores"):
        parse_cores(text)


def test_the_fastest_cores() -> None:
    eight = [300, 300, 800, 800, 800, 800, 800, 1024]
    answer = "\n".join(f"core {number} {speed}" for number, speed in enumerate(eight))
    assert fastest(answer, 6) == (2, 3, 4, 5, 6, 7)
    assert fastest(answer, 2) == (6, 7)
    assert fastest(answer, 8) == fastest(answer, 0) == ()
    assert fastest("core 0 0\ncore 1 0", 1) == ()  # nothing is known of them
    assert mask((4, 5, 6, 7)) == "f0"
