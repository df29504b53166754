"""A stand-in for an Android device: what its adbd does, over TCP, for the real adb.

It speaks the transport protocol (CNXN, AUTH, OPEN, OKAY, WRTE, CLSE), the `shell,v2,raw:` service
and the `sync:` service as documented in protocol.txt, SERVICES.TXT, SYNC.TXT and shell_protocol.h
of AOSP's packages/modules/adb. Files are really written, and commands really run: by mksh with
toybox's commands, as on Android, where these are installed. What it is not: another kernel, another
CPU, SELinux (but that hard links are forbidden), or a screen that asks for leave.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.transports.link import Link, free_port

VERSION, MOST = 0x01000001, 256 * 1024
FEATURES = "shell_v2,cmd,stat_v2"
NO_HARD_LINKS = """#!{mksh}
case $1 in -s*) exec {toybox} ln "$@"; esac
echo "ln: cannot create hard link: Permission denied" >&2
exit 1
"""
"""SELinux's rule for adb's user on Android, in the place of `ln`."""
UNEQUAL_CORES = """#!{sh}
case $1 in
    */cpu{core}/cpu_capacity) echo 1024;;
    */cpu_capacity) echo 300;;
    *) exec {toybox} cat "$@";;
esac
"""
"""In the place of `cat`."""
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)


class Gone(Exception):
    """The connection ended."""


def receive(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = connection.recv(size - len(data))
        if not chunk:
            raise Gone
        data += chunk
    return bytes(data)


class Stream:
    """One service that the host opened: bytes in both directions."""

    def __init__(self, send: Callable[..., None], mine: int, theirs: int) -> None:
        self._send, self.mine, self.theirs = send, mine, theirs
        self._incoming: queue.Queue[bytes | None] = queue.Queue()
        self._rest = b""
        self._may_write: queue.Queue[bool] = queue.Queue()
        self.gone = False

    def accept(self) -> None:
        self._send(b"OKAY", self.mine, self.theirs)
        self._may_write.put(True)

    def arrived(self, data: bytes) -> None:
        self._incoming.put(data)

    def acknowledged(self) -> None:
        self._may_write.put(True)

    def end(self) -> None:
        self.gone = True
        self._incoming.put(None)
        self._may_write.put(False)

    def read(self, size: int) -> bytes:
        while len(self._rest) < size:
            chunk = self._incoming.get()
            if chunk is None:
                raise Gone
            self._send(b"OKAY", self.mine, self.theirs)
            self._rest += chunk
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def write(self, data: bytes) -> None:
        for start in range(0, len(data), MOST):
            if self.gone or not self._may_write.get():
                raise Gone
            self._send(b"WRTE", self.mine, self.theirs, data[start : start + MOST])

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._send(b"CLSE", self.mine, self.theirs)


class Connection:
    """One host that is connected."""

    def __init__(self, device: AdbDevice, end: socket.socket) -> None:
        self._device, self._end = device, end
        self._streams: dict[int, Stream] = {}
        self._lock = threading.Lock()

    def serve(self) -> None:
        try:
            while True:
                kind, first, second, size = struct.unpack("<4sIII8x", receive(self._end, 24))
                self._handle(kind, first, second, receive(self._end, size))
        except (Gone, OSError):
            for stream in [*self._streams.values()]:
                stream.end()
            self._end.close()

    def _send(self, kind: bytes, first: int, second: int, data: bytes = b"") -> None:
        magic = struct.unpack("<I", kind)[0] ^ 0xFFFFFFFF
        head = struct.pack("<4sIIIII", kind, first, second, len(data), sum(data), magic)
        with self._lock:
            self._end.sendall(head + data)

    def _handle(self, kind: bytes, first: int, second: int, data: bytes) -> None:
        if kind in (b"CNXN", b"AUTH") and not self._device.authorizes:
            if (kind, first) != (b"AUTH", 3):  # a public key waits for someone to look at it
                self._send(b"AUTH", 1, 0, os.urandom(20))  # sign this; but no signature will do
        elif kind == b"CNXN":
            banner = f"device::ro.product.model=Stand-in;features={FEATURES}"
            self._send(b"CNXN", VERSION, MOST, banner.encode())
        elif kind == b"OPEN":
            self._open(first, data.rstrip(b"\0").decode())
        elif second in self._streams:
            stream = self._streams[second]
            if kind == b"WRTE":
                stream.arrived(data)
            elif kind == b"OKAY":
                stream.acknowledged()
            elif kind == b"CLSE":
                del self._streams[second]
                stream.end()

    def _open(self, theirs: int, service: str) -> None:
        name, _, command = service.partition(":")
        words = name.split(",")
        if words[0] == "shell" and {"v2", "raw"} <= set(words):
            run = lambda stream: self._device.shell(stream, command)  # noqa: E731
        elif service == "sync:":
            run = self._device.sync
        else:
            self._send(b"CLSE", 0, theirs)
            return
        mine = 1 + max(self._streams, default=0) + theirs
        stream = self._streams[mine] = Stream(self._send, mine, theirs)

        def serve() -> None:
            with contextlib.suppress(Gone, OSError):
                stream.accept()
                run(stream)
            if self._streams.pop(mine, None):
                stream.close()

        threading.Thread(target=serve, daemon=True).start()


class AdbDevice:
    """The far side: its folders, and how it behaves."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache = folder / "far"
        self.authorizes = True
        self.room = 1 << 40
        """Bytes that can be pushed before its storage is full."""
        self.slow = threading.Event()
        """While it is set, nothing that is pushed gets on."""
        self.pushed: list[int] = []
        """Bytes of each file that was pushed whole."""
        self._path = android_commands(folder / "bin")
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()
        self.link = Link(self._listener.getsockname()[1])

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed: the end
            while True:
                end, _ = self._listener.accept()
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=Connection(self, end).serve, daemon=True).start()

    @property
    def serial(self) -> str:
        return f"127.0.0.1:{self.link.port}"

    @property
    def url(self) -> str:
        return f"adb://{self.serial}"

    def close(self) -> None:
        self.link.close()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()

    @property
    def artifacts(self) -> Path:
        return self.cache / "artifacts"

    def left_behind(self) -> list[str]:
        """Whatever is in its cache, apart from artifacts that are whole or have begun."""
        paths = [p for p in self.cache.rglob("*") if p.is_symlink() or not p.is_dir()]
        folders = list((self.cache / "work").glob("*"))
        kept = {p for p in paths if p.parent == self.artifacts and p.suffix in ("", ".part")}
        return [str(p) for p in (*paths, *folders) if p not in kept]

    def program(self, name: str, text: str) -> Path:
        """An executable to bring along."""
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    def has_one_fast_core(self, core: int) -> None:
        """Where cores are alike here, let the kernel's numbers for them differ there."""
        cat = self.folder / "bin/cat"
        if not cat.is_symlink():
            pytest.skip("no toybox and mksh here")
        toybox = cat.readlink()
        cat.unlink()
        cat.write_text(UNEQUAL_CORES.format(sh=self.folder / "bin/sh", toybox=toybox, core=core))
        cat.chmod(0o755)

    def shell(self, stream: Stream, command: str) -> None:
        """As adbd's Subprocess without a PTY."""
        environment = {"PATH": self._path, "HOME": "/", "EDGEADAPT_CACHE": str(self.cache)}
        process = subprocess.Popen(
            ["sh", "-c", command], executable=shutil.which("sh", path=self._path),
            env=environment, cwd="/", start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
        )  # fmt: skip
        lock = threading.Lock()

        def packet(kind: int, data: bytes) -> None:
            with contextlib.suppress(Gone, OSError), lock:
                stream.write(struct.pack("<BI", kind, len(data)) + data)

        def tell(kind: int, number: int) -> None:
            while chunk := os.read(number, 32768):
                packet(kind, chunk)

        assert process.stdin and process.stdout and process.stderr
        tellers = [
            threading.Thread(target=tell, args=(STDOUT, process.stdout.fileno())),
            threading.Thread(target=tell, args=(STDERR, process.stderr.fileno())),
        ]
        for thread in (*tellers, threading.Thread(target=self._feed, args=(stream, process))):
            thread.daemon = True
            thread.start()
        for teller in tellers:
            teller.join()
        code = process.wait()
        process.stdout.close()
        process.stderr.close()
        packet(EXIT, bytes([code if code >= 0 else 128 - code]))

    @staticmethod
    def _feed(stream: Stream, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin
        try:
            while True:
                kind, size = struct.unpack("<BI", stream.read(5))
                data = stream.read(size)
                if kind == CLOSE_STDIN:
                    process.stdin.close()
                elif kind == STDIN and not process.stdin.closed:
                    with contextlib.suppress(BrokenPipeError):
                        process.stdin.write(data)
        except Gone:
            with contextlib.suppress(OSError):
                process.stdin.close()
            if process.poll() is None:
                process.send_signal(signal.SIGHUP)

    def sync(self, stream: Stream) -> None:
        """As adbd's file_sync_service."""
        while True:
            kind, size = struct.unpack("<4sI", stream.read(8))
            text = stream.read(size).decode() if kind != b"QUIT" else ""
            if kind == b"QUIT":
                return
            if kind in (b"STAT", b"STA2", b"LST2"):
                stream.write(stat_answer(kind, Path(text), follow=kind == b"STA2"))
            elif kind == b"SEND":
                path, _, mode = text.rpartition(",")
                self._store(stream, Path(path), int(mode) & 0o777)
            else:
                message = b"not in this stand-in"
                stream.write(struct.pack("<4sI", b"FAIL", len(message)) + message)

    def _store(self, stream: Stream, path: Path, mode: int) -> None:
        failure = ""
        try:
            if not path.is_relative_to(self.folder):
                raise PermissionError(13, "Permission denied")
            path.unlink(missing_ok=True)
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        except OSError as error:
            failure, file = f"couldn't create file: {error.strerror}", os.open(os.devnull, 1)
        total = 0
        try:
            for chunk in chunks(stream):
                while self.slow.is_set() and not stream.gone:
                    time.sleep(0.01)
                self.room -= len(chunk)
                if self.room < 0:
                    failure = failure or "write failed: No space left on device"
                    path.unlink(missing_ok=True)
                else:
                    total += os.write(file, chunk)
        except Gone:
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(file)
        if failure:
            stream.write(struct.pack("<4sI", b"FAIL", len(failure)) + failure.encode())
            return
        self.pushed.append(total)
        stream.write(struct.pack("<4sI", b"OKAY", 0))


def chunks(stream: Stream) -> Iterator[bytes]:
    """Of a SEND, up to its DONE, which has the time of the last change for a size."""
    while True:
        kind, size = struct.unpack("<4sI", stream.read(8))
        if kind == b"DONE":
            return
        if kind != b"DATA":
            raise Gone
        yield stream.read(size)


def stat_answer(kind: bytes, path: Path, *, follow: bool) -> bytes:
    try:
        found, error = path.stat(follow_symlinks=follow), 0
    except OSError as failed:
        found, error = os.stat_result([0] * 10), failed.errno or 5
    times = [int(x) for x in (found.st_atime, found.st_mtime, found.st_ctime)]
    if kind == b"STAT":
        return struct.pack("<4sIII", kind, found.st_mode, found.st_size, times[1])
    owner = (found.st_nlink, found.st_uid, found.st_gid)
    return struct.pack(
        "<4sIQQIIIIQqqq", kind, error, found.st_dev, found.st_ino, found.st_mode, *owner,
        found.st_size, *times,
    )  # fmt: skip


def android_commands(folder: Path) -> str:
    """A PATH with Android's shell and commands, as far as they are installed here."""
    mksh, toybox = shutil.which("mksh"), shutil.which("toybox")
    if not mksh or not toybox:
        return "/usr/bin:/bin"
    folder.mkdir()
    names = subprocess.run([toybox], capture_output=True, text=True, check=True).stdout.split()
    for name in names:
        (folder / name).symlink_to(toybox)
    for name in ("dd", "tr"):  # Debian's toybox lacks these two, Android's has them
        if name not in names:
            (folder / name).symlink_to(shutil.which(name) or "")
    (folder / "sh").symlink_to(mksh)
    (folder / "ln").unlink()
    (folder / "ln").write_text(NO_HARD_LINKS.format(mksh=mksh, toybox=toybox))
    (folder / "ln").chmod(0o755)
    return str(folder)


@dataclass
class AdbServer:
    """The real adb's server, on a port of the test's own."""

    client: str
    """What EDGEADAPT_ADB is set to."""

    def adb(self, *words: str) -> str:
        command = [*self.client.split(), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@contextlib.contextmanager
def adb_server(folder: Path) -> Iterator[AdbServer]:
    """Start one; skip where there is no adb. Its keys lie in `folder`, and it looks for nothing."""
    if shutil.which("adb") is None:
        pytest.skip("no adb here; on Debian or Ubuntu type: sudo apt install adb")
    port = free_port()
    server = AdbServer(f"adb -P {port}")
    environment = {**os.environ, "HOME": str(folder), "ADB_LOCAL_TRANSPORT_MAX_PORT": "5553"}
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            ["adb", "-L", f"tcp:localhost:{port}", "server", "nodaemon"],
            env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        await_port(port)
        yield server
    finally:
        process.terminate()
        process.wait()


def await_port(port: int) -> None:
    for _ in range(200):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)
    raise AssertionError("adb's server does not answer")
