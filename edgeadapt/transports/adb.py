"""Over adb, the client of the Android Debug Bridge: phones, and headsets that are made like them.

Files go by `adb push`, in pieces, so that a copy that broke off can go on; a script there, which
hears from us as long as we live, puts them together and clears away what is left of them.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO

from edgeadapt.console import log, progress
from edgeadapt.errors import HostFailure, InputError, MissingSetupError
from edgeadapt.transports import scripts
from edgeadapt.transports.client import Finished
from edgeadapt.transports.place import Portion
from edgeadapt.transports.shell import ShellTransport, who

CLIENT_VARIABLE = "EDGEADAPT_ADB"
"""What to call instead of `adb`, with options: `adb -P 5038`."""

_PIECE = 1 << 25
"""Bytes of a push; of a broken copy at most so many are sent again."""
_PUSH_S = 900.0
_ANSWER_S = 60.0
"""For adb to say something that asks nothing of the device, or to start its server."""
_BACK_S = 20.0
"""For a device to come back."""
_OPEN_FILES = Path("/proc/self/fd")

_URL = re.compile(r"adb://(?P<serial>[\w.:\[\]%-]*)(?P<program>/[^?#]+)?/?", re.ASCII)

_ADVICE = {
    "unauthorized": "unlock it, put a headset on, and allow USB debugging for this computer",
    "authorizing": "unlock it, put a headset on, and allow USB debugging for this computer",
    "offline": "unplug and plug it again, or type: adb reconnect offline",
    "connecting": "wait a moment, or unplug and plug it again",
    "no permissions": "this user may not use that USB device; on Debian or Ubuntu type: "
    "sudo apt install android-sdk-platform-tools-common",
}
"""State that adb tells -> what to do."""
_NO_DEVICE = (
    "turn on developer mode and USB debugging there and plug it in, or name the address of one "
    "that listens on the network: --on adb://192.168.0.7:5555"
)


class AdbTransport(ShellTransport):
    """A device that adb reaches, with llama-bench or one that is brought along."""

    lost = -1
    folder = "/data/local/tmp/edgeadapt"

    def __init__(self, url: str) -> None:
        match = _URL.fullmatch(url)
        if match is None or match["serial"].startswith("-"):
            raise InputError(f"--on {url} is malformed; expected adb://[serial][/path/there]")
        self._serial: str = match["serial"]
        self._connected = False
        super().__init__(self._serial or "the Android device", "adb", match["program"])

    def connect(self) -> None:
        """See that one device answers, then see `Transport.connect`.

        Raises:
            MissingSetupError: adb is not installed.
        """
        adb = _adb()[0]
        if shutil.which(adb) is None:
            raise MissingSetupError(
                f"{adb} not found; on Debian or Ubuntu type: sudo apt install adb (elsewhere it is "
                "in Android's SDK Platform-Tools)"
            )
        state = self._find()
        if state in ("authorizing", "connecting", "offline"):  # perhaps only for a moment
            self._wait_for(2.0)
            state = self._find()
        if state != "device":
            advice = next((said for name, said in _ADVICE.items() if state.startswith(name)), "")
            raise HostFailure(
                f"{self.name} is {state}; {advice or 'start Android on it, and plug it again'}"
            )
        self.name, self._example = self._serial, f"adb://{self._serial}"
        super().connect()

    def close(self) -> None:
        """Take back the connection over the network, if it is ours."""
        if self._connected:
            with contextlib.suppress(HostFailure):
                _answer("disconnect", self._serial)

    def _find(self) -> str:
        """Choose the device, and return its state."""
        states = _devices()
        if not self._serial:
            if len(states) > 1:
                raise HostFailure(
                    f"adb sees {len(states)} devices: {', '.join(states)}; name one: "
                    f"--on adb://{next(iter(states))}"
                )
            if not states:
                raise HostFailure(f"adb sees no device; {_NO_DEVICE}")
            self._serial = self.name = next(iter(states))
        if self._serial not in states and ":" in self._serial:
            said = _answer("connect", self._serial)
            states = _devices()
            self._connected = self._serial in states
            if not self._connected:
                raise HostFailure(f"{self._serial} cannot be reached: {said}")
        if self._serial not in states:
            others = f"it sees {', '.join(states)}" if states else _NO_DEVICE
            raise HostFailure(f"adb sees no device {self._serial}; {others}")
        return states[self._serial]

    def _wait_for(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while _devices().get(self._serial) != "device":
            if time.monotonic() > end:
                return False
            time.sleep(0.1)
        return True

    def _reach_again(self) -> None:
        if self._wait_for(_BACK_S / 2):
            return
        if ":" in self._serial:
            _answer("disconnect", self._serial)
            _answer("connect", self._serial)
        if not self._wait_for(_BACK_S / 2):
            raise HostFailure(
                f"{self.name} vanished while files were copied; what is there already will not be "
                "sent again"
            )

    def _client(self) -> Sequence[str]:
        return (*_adb(), "-s", self._serial, "shell", "-T")

    def _ended(self, finished: Finished) -> Finished:
        """See `ShellTransport`. A device that vanishes is no error for adb: it ends with code 0."""
        stdout, ended, code = finished.stdout.rpartition(scripts.ENDED.encode())
        if ended and code.strip().isdigit():
            return replace(finished, stdout=stdout, code=int(code))
        said = (
            finished.stderr if finished.last_words.startswith("error: ") else ("the device left",)
        )
        return replace(finished, code=self.lost, stderr=said)

    def _command_line(self, script: bytes) -> str:
        return f'{scripts.command_line(script, replace=False)}; echo "{scripts.ENDED}$?"'

    def _copy(self, portion: Portion) -> Finished:
        """Push what is missing of a file."""
        file = portion.file
        offset = portion.offset if _OPEN_FILES.exists() else 0
        prefix = f"{file.sha256}.push.{uuid.uuid4().hex}."
        failed: list[str] = []
        heard, ready = bytearray(), threading.Event()

        def hear(chunk: bytes) -> None:
            heard.extend(chunk)
            if not chunk or scripts.RECEIVING.encode() in heard:
                ready.set()

        title = f"copying {file.name.rpartition('/')[2]} to {self.name}"
        with progress(title, (file.size - offset) / 1e6, "MB") as advance:

            def feed(stdin: IO[bytes]) -> None:
                stdin.flush()
                ready.wait()
                if scripts.RECEIVING.encode() not in heard:
                    return
                for number, (path, size) in enumerate(_pieces(file.path, offset, file.size)):
                    name = f"{prefix}{number}"
                    failed[:] = self._push(path, f"{self._files}/{name}")
                    if failed:
                        return
                    stdin.write(f"{name}\n".encode())
                    stdin.flush()
                    advance(size / 1e6)

            arguments = (who(), file.sha256, str(offset), str(file.size), prefix)
            finished = self._call(scripts.PUT, arguments, feed, hear=hear)
        if finished.code:
            self._call(scripts.FORGET, (prefix,))
        if failed and finished.code in (self.lost, scripts.SHORT):
            code = scripts.NO_SPACE if "No space left" in failed[0] else self.lost
            return replace(finished, code=code, stderr=tuple(failed))
        return finished

    def _push(self, path: str, target: str) -> list[str]:
        """Push one file; what went wrong, if something did."""
        command = [*_adb(), "-s", self._serial, "push", path, target]
        if shutil.which("setpriv"):  # our own SIGKILL ends it too
            command = ["setpriv", "--pdeathsig", "KILL", *command]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=_PUSH_S
            )
        except subprocess.TimeoutExpired:
            return [f"no end of a push after {_PUSH_S:g} s"]
        log.debug("%s", done.stdout.decode("utf-8", "replace").strip())
        return [_first_line(done.stdout + done.stderr)] if done.returncode else []

    def _why_not_reached(self, finished: Finished) -> str:
        if finished.code == scripts.NO_FOLDER:
            return f"{self.name} has no place for a cache: {finished.last_words}"
        return f"{self.name} cannot be reached: {finished.last_words}; see: adb devices"


def _pieces(path: Path, offset: int, size: int) -> Iterator[tuple[str, int]]:
    """Parts of a file as files of their own, without a name that could be left behind.

    Yields:
        what to open, and bytes in it; to be used before the next is asked for.
    """
    if not offset and (size <= _PIECE or not _OPEN_FILES.exists()):
        yield str(path), size
        return
    with path.open("rb") as source:
        source.seek(offset)
        while offset < size:
            with tempfile.TemporaryFile() as piece:
                piece.write(source.read(min(_PIECE, size - offset)))
                piece.flush()
                if not piece.tell():
                    raise InputError(f"{path} was changed while it was copied")
                offset += piece.tell()
                yield f"/proc/{os.getpid()}/fd/{piece.fileno()}", piece.tell()


def _adb() -> list[str]:
    return shlex.split(os.environ.get(CLIENT_VARIABLE) or "adb")


def _answer(*words: str) -> str:
    """What adb itself says.

    Raises:
        HostFailure: it fails, or says nothing for long.
    """
    try:
        done = subprocess.run(
            [*_adb(), *words], stdin=subprocess.DEVNULL, capture_output=True, check=False,
            timeout=_ANSWER_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise HostFailure(
            f"`adb {words[0]}` does not answer; type: adb kill-server, and then the same again"
        ) from error
    if done.returncode:
        raise HostFailure(f"`adb {words[0]}` failed: {_first_line(done.stderr + done.stdout)}")
    return done.stdout.decode("utf-8", "replace").strip()


def _devices() -> dict[str, str]:
    """Serial -> state, of all devices that adb sees."""
    lines = _answer("devices").partition("List of devices attached")[2].splitlines()
    return {serial: state for serial, _, state in (x.partition("\t") for x in lines) if state}


def _first_line(said: bytes) -> str:
    lines = said.decode("utf-8", "replace").strip().splitlines()
    return lines[0].removeprefix("adb: ").removeprefix("error: ") if lines else "it said nothing"
