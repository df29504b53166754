"""Over the system's own OpenSSH client, with the user's own settings, keys and known hosts.

Never a password: `BatchMode` makes ssh fail where it would ask for one, and where it would ask
whether a host key is right. What checks host keys is ssh's own configuration, which is not touched.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from edgeadapt.errors import InputError
from edgeadapt.transports import scripts
from edgeadapt.transports.client import Finished
from edgeadapt.transports.shell import LOST, ShellTransport

CLIENT_VARIABLE = "EDGEADAPT_SSH"
"""What to call instead of `ssh`, with options: `ssh -i key`."""

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


class SshTransport(ShellTransport):
    """Another machine with an SSH server, a POSIX shell, and edgeadapt or llama-bench."""

    def __init__(self, url: str) -> None:
        self._address = SshAddress.parse(url)
        user, port = self._address.user, self._address.port
        name = f"{f'{user}@' if user else ''}{self._address.host}{f':{port}' if port else ''}"
        super().__init__(name, "ssh", self._address.program)

    def _client(self) -> Sequence[str]:
        client = shlex.split(os.environ.get(CLIENT_VARIABLE) or "ssh")
        return (*client, *_OPTIONS, *self._address.arguments)

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
        if finished.code == LOST:
            return f"{self.name} cannot be reached: {finished.last_words}; try `{typed}`"
        return f"{self.name} has no POSIX shell that answers: {finished.last_words}; try `{typed}`"
