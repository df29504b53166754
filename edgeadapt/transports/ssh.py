"""Over the system's own OpenSSH client, with the user's own settings, keys and known hosts.

Never a password: `BatchMode` makes ssh fail where it would ask for one, and where it would ask
whether a host key is right. What checks host keys is ssh's own configuration, which is not touched.
"""

from __future__ import annotations

import getpass
import os
import platform
import re
import shlex
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO

from edgeadapt.console import log, progress
from edgeadapt.errors import HostFailure, InputError
from edgeadapt.transports import scripts
from edgeadapt.transports.base import Ended, NeededFile, Transport
from edgeadapt.transports.client import Finished, talk
from edgeadapt.transports.place import Portion, plan_copies

CLIENT_VARIABLE = "EDGEADAPT_SSH"
"""What to call instead of `ssh`, with options: `ssh -i key`."""

BEAT_S = 10.0
"""How often the other side hears that we are there."""
QUIET_S = 60.0
"""After so much silence it gives up and cleans up."""
_TRIES = 4
"""Broken copies in a row, without getting any further, after which to give up."""
_LOST = 255
"""ssh's own exit code for a connection that failed."""
_CHUNK = 1 << 18
_OPTIONS = (
    "-T", "-x", "-oBatchMode=yes", "-oConnectTimeout=20", "-oServerAliveInterval=10",
    "-oServerAliveCountMax=3", "-oClearAllForwardings=yes", "-oEscapeChar=none",
)  # fmt: skip

_URL = re.compile(
    r"ssh://(?:(?P<user>[^@:/?#]+)@)?(?P<host>\[[0-9A-Fa-f:.%\w]+\]|[^@:/?#\[\]]+)"
    r"(?::(?P<port>\d{1,5}))?(?P<program>/[^?#]+)?/?"
)


@dataclass(frozen=True)
class SshAddress:
    """What `ssh://user@host:port/program` says; what is None is for ssh's configuration."""

    host: str
    user: str | None
    port: int | None
    program: str | None

    @classmethod
    def parse(cls, url: str) -> SshAddress:
        """Read a URL.

        Raises:
            InputError: it is malformed, or holds a password.
        """
        expected = "expected ssh://user@host[:port][/path/of/edgeadapt/there]"
        if re.match(r"ssh://[^/@]*:[^/@]*@", url):
            raise InputError(
                "--on: passwords are not taken; put a key there with ssh-copy-id, and leave the "
                f"password out; {expected}"
            )
        match = _URL.fullmatch(url)
        if match is None or "-" in (match["host"][:1], (match["user"] or "")[:1]):
            raise InputError(f"--on {url} is malformed; {expected}")
        port = int(match["port"]) if match["port"] else None
        if port is not None and not 0 < port < 65536:
            raise InputError(f"--on {url}: there is no port {port}; {expected}")
        return cls(match["host"].strip("[]"), match["user"], port, match["program"])

    @property
    def arguments(self) -> tuple[str, ...]:
        """For ssh's command line."""
        user = ("-l", self.user) if self.user else ()
        port = ("-p", str(self.port)) if self.port else ()
        return (*user, *port, "--", self.host)


class SshTransport(Transport):
    """Another machine with an SSH server, a POSIX shell, and edgeadapt or llama-bench."""

    def __init__(self, url: str) -> None:
        self._address = SshAddress.parse(url)
        self._program: str | None = None
        user, port = self._address.user, self._address.port
        self.name = f"{f'{user}@' if user else ''}{self._address.host}{f':{port}' if port else ''}"

    @property
    def program(self) -> str:
        """See `Transport.program`; named in the URL, or found."""
        assert self._program is not None, "connect first"
        return self._program

    def connect(self) -> None:
        """See `Transport.connect`."""
        wanted = self._address.program
        answer = self._ask(scripts.PROBE, (wanted or "",))
        found = answer.removeprefix("program ").strip()
        if not found and wanted:
            raise HostFailure(f"{self.name} has no program {wanted}; name another after the host")
        if not found:
            raise HostFailure(
                f"{self.name} has neither edgeadapt nor llama-bench on its PATH or in the usual "
                f"places; install one there, or say where it is: --on ssh://{self.name}/path/to/it"
            )
        self._program = found
        log.info("%s: found %s", self.name, found)

    def place(self, files: Sequence[NeededFile]) -> int:
        """See `Transport.place`. A copy that breaks off goes on where it stopped."""
        copied, reached, failures = 0, None, 0
        while True:
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

            arguments = (_who(), file.sha256, str(portion.offset), str(file.size))
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
        again = (_LOST, scripts.SHORT, scripts.WRONG, scripts.BUSY)
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
        head = (_who(), uuid.uuid4().hex, f"{QUIET_S:g}", str(len(files)))
        finished = self._call(
            scripts.RUN,
            (*head, *pairs, self.program, *arguments),
            beat_s=BEAT_S,
            timeout_s=timeout_s,
            show=True,
        )
        self._check_run(finished, timeout_s)
        return Ended(finished.code, _after_marker(finished.stdout), finished.last_words)

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
        if finished.code == _LOST:
            raise HostFailure(
                f"the connection to {self.name} was lost while it measured "
                f"({finished.last_words}); nothing was brought back, and what runs there is ended "
                f"within {QUIET_S:g} s; type the same again"
            )

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
    ) -> Finished:
        text = scripts.with_arguments(script, arguments)
        client = shlex.split(os.environ.get(CLIENT_VARIABLE) or "ssh")

        def speak(stdin: IO[bytes]) -> None:
            stdin.write(text)
            if feed is not None:
                feed(stdin)

        command = [*client, *_OPTIONS, *self._address.arguments, scripts.command_line(text)]
        return talk(command, speak, beat_s=beat_s, timeout_s=timeout_s, show=show)

    def _why_not_reached(self, finished: Finished) -> str:
        said = " ".join(finished.stderr)
        typed = " ".join(("ssh", *self._address.arguments)).replace(" -- ", " ")
        if "REMOTE HOST IDENTIFICATION HAS CHANGED" in said:
            return (
                f"the host key of {self.name} is not the one that is known: another machine, or "
                f"someone in between; find out which, then `ssh-keygen -R {self._address.host}`"
            )
        if "Host key verification failed" in said:
            return f"the host key of {self.name} is not known; type `{typed}` once and compare it"
        if "Permission denied" in said:
            return (
                f"{self.name} takes none of your keys, and passwords are never asked for; type: "
                f"{typed.replace('ssh', 'ssh-copy-id', 1)}"
            )
        if finished.code == scripts.NO_FOLDER:
            return f"{self.name} has no place for a cache: {finished.last_words}"
        if finished.code == _LOST:
            return f"{self.name} cannot be reached: {finished.last_words}; try `{typed}`"
        return f"{self.name} has no POSIX shell that answers: {finished.last_words}; try `{typed}`"


def _after_marker(stdout: bytes) -> bytes:
    """What the script wrote, without what the login shell wrote before."""
    return stdout.partition(scripts.MARKER.encode() + b"\n")[2]


def _who() -> str:
    """Who asks, for others who have to wait."""
    return f"{getpass.getuser()}@{platform.node()}"
