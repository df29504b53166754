"""A client program (ssh, adb) as a child process that is fed, watched, and always ended."""

from __future__ import annotations

import collections
import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO

from edgeadapt.console import log
from edgeadapt.errors import HostFailure

_GRACE_S = 20.0
"""For the other side to clean up after its stdin has ended, before the client is ended."""
_STDERR_LINES = 40


@dataclass(frozen=True)
class Finished:
    """How a client program ended."""

    code: int
    stdout: bytes
    stderr: tuple[str, ...]
    """Its last lines that are not empty."""
    timed_out: bool = False

    @property
    def last_words(self) -> str:
        """The last line of stderr."""
        return self.stderr[-1].strip() if self.stderr else "it said nothing"


def talk(
    command: Sequence[str],
    feed: Callable[[IO[bytes]], None],
    *,
    beat_s: float | None = None,
    timeout_s: float | None = None,
    show: bool = False,
    hear: Callable[[bytes], None] | None = None,
) -> Finished:
    """Start a client, feed its stdin, and wait for its end.

    Whatever ends this early, an exception or the end of this process, closes the client's stdin;
    the script on the other side takes that as the sign to clean up.

    Args:
        command: the client and its arguments.
        feed: writes to the client's stdin.
        beat_s: after that, keep stdin open and send an empty line every so many seconds; by
            default stdin is closed.
        timeout_s: close stdin after so many seconds, counted from the end of feeding.
        show: pass on lines of stderr as they come.
        hear: gets what came on stdout as it comes, and nothing at its end; in a thread.

    Raises:
        HostFailure: the client is not installed.
    """
    process = _start(command)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    stdout, stderr = bytearray(), collections.deque[str](maxlen=_STDERR_LINES)
    readers = [
        threading.Thread(target=_collect, args=(process.stdout, stdout, hear), daemon=True),
        threading.Thread(target=_listen, args=(process.stderr, stderr, show), daemon=True),
    ]
    timed_out = False
    with _always_ended(process):
        for reader in readers:
            reader.start()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            feed(process.stdin)
            process.stdin.flush()
            if beat_s is not None:
                timed_out = _keep_open(process, beat_s, timeout_s)
    for reader in readers:
        reader.join(timeout=5)
    return Finished(process.returncode, bytes(stdout), tuple(stderr), timed_out)


def _start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    """In a session of its own: a terminal's Ctrl-C reaches only us, and we close its stdin."""
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise HostFailure(
            f"{command[0]} cannot be started ({error.strerror or error}); install it first"
        ) from error


@contextlib.contextmanager
def _always_ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        try:
            with contextlib.suppress(OSError):  # it ended before it read everything
                assert process.stdin is not None
                process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=_GRACE_S)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def _keep_open(process: subprocess.Popen[bytes], beat_s: float, timeout_s: float | None) -> bool:
    """Say that we are there until the client ends; true when the time was over first."""
    assert process.stdin is not None
    start = time.monotonic()
    while True:
        left = timeout_s - (time.monotonic() - start) if timeout_s is not None else beat_s
        if left <= 0:
            return True
        try:
            process.wait(timeout=min(beat_s, left))
        except subprocess.TimeoutExpired:
            process.stdin.write(b"\n")
            process.stdin.flush()
        else:
            return False


def _collect(stream: IO[bytes], into: bytearray, hear: Callable[[bytes], None] | None) -> None:
    with stream:
        while chunk := os.read(stream.fileno(), 1 << 16):
            into += chunk
            if hear is not None:
                hear(chunk)
    if hear is not None:
        hear(b"")


def _listen(stream: IO[bytes], into: collections.deque[str], show: bool) -> None:
    with stream:
        for raw in stream:
            line = raw.decode("utf-8", "replace").rstrip()
            if line:
                into.append(line)
                (log.info if show else log.debug)("%s", line)
