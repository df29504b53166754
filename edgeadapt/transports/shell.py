"""Machines with a shell: what runs there are our scripts, however they get there."""

from __future__ import annotations

import getpass
import platform
import uuid
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from edgeadapt.console import log, progress
from edgeadapt.errors import HostFailure, InputError
from edgeadapt.transports import cores, scripts
from edgeadapt.transports.base import Ended, NeededFile, Transport
from edgeadapt.transports.client import Finished, talk
from edgeadapt.transports.place import Portion, plan_copies, program_files

BEAT_S = 10.0
"""How often the other side hears that we are there."""
QUIET_S = 60.0
"""After so much silence it gives up and cleans up."""
LOST = 255
"""Exit code for a connection that failed: ssh's own, which a program there may have too."""
_TRIES = 4
"""Broken copies in a row, without getting any further, after which to give up."""
_CHUNK = 1 << 18


class ShellTransport(Transport):
    """Another machine with a POSIX shell, and edgeadapt or llama-bench."""

    lost = LOST
    """In the place of an exit code: the connection failed."""
    folder = ""
    """Where to keep things there, unless the other side's environment says."""

    def __init__(self, name: str, scheme: str, program: str | None) -> None:
        self.name = name
        self._example = f"{scheme}://{name}"
        self._wanted = program
        self._program: str | None = None
        self._brought = ""
        self._files = ""
        """Where artifacts are kept there."""

    @property
    def program(self) -> str:
        """See `Transport.program`; named in the URL, or found."""
        assert self._program is not None, "connect first"
        return self._program

    @abstractmethod
    def _client(self) -> Sequence[str]:
        """What runs a command line there, which is the next argument."""

    @abstractmethod
    def _why_not_reached(self, finished: Finished) -> str:
        """A sentence on a script that failed."""

    def bring(self, program: Path) -> list[NeededFile]:
        """See `Transport.bring`; with it come llama.cpp's libraries that lie near it."""
        files = program_files(program)
        self._brought = f"./{files[0].name}"
        return files

    def fast_cores(self, count: int) -> tuple[int, ...]:
        """See `Transport.fast_cores`."""
        return cores.fastest(self._ask(scripts.CORES, ()), count)

    def connect(self) -> None:
        """See `Transport.connect`."""
        answer = self._ask(scripts.PROBE, (self._wanted or "",))
        found = dict(line.partition(" ")[::2] for line in answer.splitlines())
        self._files = found.get("files", "")
        self._program = self._brought or found.get("program", "").strip()
        if self._brought:
            return
        if not self._program and self._wanted:
            raise HostFailure(
                f"{self.name} has no program {self._wanted}; name another at the end of the URL"
            )
        if not self._program:
            raise HostFailure(
                f"{self.name} has neither edgeadapt nor llama-bench on its PATH or in the usual "
                f"places; install one there, say where it is: --on {self._example}/path/to/it, or "
                "bring one along: --llama-bench FILE"
            )
        log.info("%s: found %s", self.name, self._program)

    def place(self, files: Sequence[NeededFile]) -> int:
        """See `Transport.place`. A copy that breaks off goes on where it stopped."""
        copied, reached, failures = 0, None, 0
        while True:
            if failures:
                self._reach_again()
            answer = self._ask(scripts.STATUS, [file.sha256 for file in files])
            portions = plan_copies(self.name, files, answer)
            missing = sum(portion.missing for portion in portions)
            copied = max(copied, missing)
            failures = 0 if reached is None or missing < reached else failures
            reached = missing if reached is None else min(missing, reached)
            for portion in portions:
                finished = self._copy(portion)
                if finished.code:
                    failures += 1
                    self._after_broken_copy(finished, portion, failures)
                    break
            else:
                return copied

    def _reach_again(self) -> None:
        """Wait for the other side to come back after a connection was lost."""

    def _copy(self, portion: Portion) -> Finished:
        """Send what is missing of a file."""
        file = portion.file
        title = f"copying {file.name.rpartition('/')[2]} to {self.name}"
        with progress(title, portion.missing / 1e6, "MB") as advance:

            def feed(stdin: IO[bytes]) -> None:
                left = portion.missing
                with file.path.open("rb") as source:
                    source.seek(portion.offset)
                    while left:
                        chunk = source.read(min(_CHUNK, left))
                        if not chunk:
                            raise InputError(f"{file.path} was changed while it was copied")
                        stdin.write(chunk)
                        left -= len(chunk)
                        advance(len(chunk) / 1e6)

            arguments = (who(), file.sha256, str(portion.offset), str(file.size))
            return self._call(scripts.PUT, arguments, feed)

    def _after_broken_copy(self, finished: Finished, portion: Portion, failures: int) -> None:
        """Return if it is worth another try."""
        name = portion.file.path.name
        if finished.code == scripts.NO_SPACE:
            raise HostFailure(f"{self.name} could not store {name}: {finished.last_words}")
        if failures >= _TRIES and finished.code == scripts.BUSY:
            raise HostFailure(
                f"{name} is being copied to {self.name} already, for {finished.last_words}; wait "
                "for that, or for its connection to be given up there"
            )
        again = (self.lost, scripts.SHORT, scripts.WRONG, scripts.BUSY)
        if failures >= _TRIES or finished.code not in again:
            raise HostFailure(
                f"copying {name} to {self.name} broke off {failures} times: "
                f"{finished.last_words}; what is there already will not be sent again"
            )
        log.info("the copy of %s broke off (%s); going on", name, finished.last_words)

    def run(
        self, arguments: Sequence[str], files: Sequence[NeededFile], *, timeout_s: float | None
    ) -> Ended:
        """See `Transport.run`. One at a time: the other side gives a lease for it."""
        pairs = [text for file in files for text in (file.sha256, file.name)]
        gauge = "yes" if self.gauges_memory else ""
        head = (who(), uuid.uuid4().hex, f"{QUIET_S:g}", str(len(files)), gauge)
        finished = self._call(
            scripts.RUN,
            (*head, *pairs, *self._words(), *arguments),
            beat_s=BEAT_S,
            timeout_s=timeout_s,
            show=True,
        )
        self._check_run(finished, timeout_s)
        stdout, peak = _after_marker(finished.stdout), None
        before, told, after = stdout.rpartition(scripts.PEAK.encode())
        if told and after.strip().isdigit():
            stdout, peak = before, 1024 * int(after)
        return Ended(finished.code, stdout, finished.last_words, finished.stderr, peak)

    def _words(self) -> tuple[str, ...]:
        """What starts the program."""
        bound = ("taskset", cores.mask(self.cores), self.program) if self.cores else (self.program,)
        return ("sh", "-c", scripts.BROUGHT, self._brought, *bound) if self._brought else bound

    def _check_run(self, finished: Finished, timeout_s: float | None) -> None:
        if finished.timed_out:
            error = HostFailure(
                f"the benchmark on {self.name} did not finish within {timeout_s:g} s and was ended "
                "there; raise --timeout, or ask for fewer tokens and repetitions"
            )
            error.timed_out = True
            raise error
        if finished.code == scripts.BUSY:
            raise HostFailure(
                f"{self.name} is measuring already, for {finished.last_words}; wait until that is "
                "over: two at a time would disturb each other"
            )
        if finished.code == scripts.NO_FILE:
            raise HostFailure(f"a file vanished from the cache of {self.name}; type the same again")
        if finished.code == self.lost:
            raise HostFailure(
                f"the connection to {self.name} was lost while it measured "
                f"({finished.last_words}); nothing was brought back, and what runs there is ended "
                f"within {QUIET_S:g} s; type the same again"
            )

    def _command_line(self, script: bytes) -> str:
        return scripts.command_line(script)

    def _ended(self, finished: Finished) -> Finished:
        """What a client's end says of the script's."""
        return finished

    def _ask(self, script: str, arguments: Sequence[str]) -> str:
        """Run a short script and return what it says.

        Raises:
            HostFailure: the other side was not reached, or the script failed.
        """
        finished = self._call(script, arguments)
        if finished.code:
            raise HostFailure(self._why_not_reached(finished))
        return _after_marker(finished.stdout).decode("utf-8", "replace")

    def _call(
        self,
        script: str,
        arguments: Sequence[str],
        feed: Callable[[IO[bytes]], None] | None = None,
        *,
        beat_s: float | None = None,
        timeout_s: float | None = None,
        show: bool = False,
        hear: Callable[[bytes], None] | None = None,
    ) -> Finished:
        text = scripts.with_arguments(script, arguments, self.folder)

        def speak(stdin: IO[bytes]) -> None:
            stdin.write(text)
            if feed is not None:
                feed(stdin)

        command = [*self._client(), self._command_line(text)]
        return self._ended(
            talk(command, speak, beat_s=beat_s, timeout_s=timeout_s, show=show, hear=hear)
        )


def _after_marker(stdout: bytes) -> bytes:
    """What the script wrote, without what the login shell wrote before."""
    return stdout.partition(scripts.MARKER.encode() + b"\n")[2]


def who() -> str:
    """Who asks, for others who have to wait."""
    return f"{getpass.getuser()}@{platform.node()}"
