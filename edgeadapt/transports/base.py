"""What a way to another machine has to offer, and which ways there are."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import cast

from edgeadapt.errors import InputError

SCHEMES = {
    "ssh": "edgeadapt.transports.ssh:SshTransport",
    "adb": "edgeadapt.transports.adb:AdbTransport",
    "qemu": "edgeadapt.transports.qemu:QemuTransport",
}
"""Scheme of the URL -> the class that is made from it."""

_EXAMPLES = {
    "ssh": "ssh://user@host[:port]", "adb": "adb://serial", "qemu": "qemu://cortex-a76",
}  # fmt: skip


@dataclass(frozen=True)
class NeededFile:
    """A local file that has to be on the other side, and under which name the program sees it."""

    path: Path
    name: str
    """Relative to the folder that the program runs in, with `/`."""
    sha256: str
    size: int


@dataclass(frozen=True)
class Ended:
    """How the program ended on the other side."""

    code: int
    stdout: bytes
    last_words: str
    """The last line of its stderr."""
    stderr: tuple[str, ...] = ()
    """Its last lines."""
    peak_rss: int | None = None
    """Bytes that it had in memory at most, mapped files among them, if that was gauged."""


class Transport(ABC):
    """One other machine. Used as a context manager: nothing of a run is left there afterwards.

    What was copied stays in a cache of the other side, named by its content, for the next time.
    """

    name: str
    """What to call the other side in messages."""
    cores: tuple[int, ...] = ()
    """To run on these alone; empty for what the system there chooses."""
    gauges_memory: bool = False
    """Whether to see how much memory the program takes, since it does not tell."""

    def __enter__(self) -> Transport:
        self.connect()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @abstractmethod
    def connect(self) -> None:
        """See that the other side answers and has a program that benchmarks.

        Raises:
            HostFailure: it does not, or has not.
        """

    @property
    @abstractmethod
    def program(self) -> str:
        """Path there of the program that benchmarks: `edgeadapt` or `llama-bench`."""

    def bring(self, program: Path) -> list[NeededFile]:
        """Use a program from here instead of one there, before connecting.

        Returns:
            what is to be placed for that.

        Raises:
            InputError: it is not there, or cannot be brought along.
        """
        raise InputError(f"{self.name} takes no program along; leave --llama-bench out")

    def fast_cores(self, count: int) -> tuple[int, ...]:
        """The fastest cores there; none where they are not known, or do not differ."""
        return ()

    @abstractmethod
    def place(self, files: Sequence[NeededFile]) -> int:
        """Copy what is missing there, and return how many bytes that were.

        Raises:
            HostFailure: it cannot be copied.
        """

    @abstractmethod
    def run(
        self, arguments: Sequence[str], files: Sequence[NeededFile], *, timeout_s: float | None
    ) -> Ended:
        """Run `program` in a new folder with these files.

        Its stderr is logged. When this process ends, however it does, the program ends and the
        folder goes.

        Raises:
            HostFailure: the connection was lost, the time was over, or it is busy.
        """

    def close(self) -> None:  # noqa: B027  # most have nothing to do
        """Let go of the other side."""


def open_transport(url: str) -> Transport:
    """The transport for a URL; nothing is connected yet.

    Raises:
        InputError: no transport has that scheme, or the URL is malformed.
    """
    scheme, colon, _ = url.partition("://")
    if not colon or scheme not in SCHEMES:
        known = ", ".join(_EXAMPLES.values())
        raise InputError(f"--on {url} names no way to another machine; expected {known}")
    module, _, name = SCHEMES[scheme].partition(":")
    return cast(Transport, getattr(importlib.import_module(module), name)(url))
