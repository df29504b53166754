"""An emulated Arm CPU: does this artifact run on it at all, and does it say the same?

QEMU's user mode runs a static aarch64 program on a named CPU model, and refuses instructions that
this model lacks as the real one does. How long that takes says nothing about the CPU, so no time is
taken.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgeadapt.errors import HostFailure, InputError, MissingSetupError
from edgeadapt.setup.aarch64 import BUILDS, PACKAGES, program_of
from edgeadapt.setup.cpu import foreign_build
from edgeadapt.transports.base import Ended, NeededFile, Transport

EMULATOR = "qemu-aarch64"

CPU_EXTENSIONS: dict[str, frozenset[str]] = {
    "cortex-a53": frozenset(),
    "cortex-a57": frozenset(),
    "cortex-a72": frozenset(),
    "cortex-a55": frozenset({"dotprod", "fp16"}),
    "cortex-a76": frozenset({"dotprod", "fp16"}),
    "neoverse-n1": frozenset({"dotprod", "fp16"}),
}
"""QEMU's name -> those of GCC's -march extensions that ggml uses; from GCC's
config/aarch64/aarch64-cores.def. The Raspberry Pi 4 has a cortex-a72, the 5 a cortex-a76."""

_URL = re.compile(r"qemu://(?P<cpu>[A-Za-z0-9.-]+)(?:/(?P<march>[A-Za-z0-9.+-]+))?/?")


class QemuTransport(Transport):
    """A CPU model of QEMU's user mode, on this machine; files are used where they lie."""

    def __init__(self, url: str) -> None:
        match = _URL.fullmatch(url)
        if match is None or match["cpu"].startswith("-"):
            raise InputError(f"--on {url} is malformed; expected qemu://CPU[/BUILD]")
        self.cpu = match["cpu"]
        self.march = match["march"] or BUILDS[0]
        self.name = f"emulated {self.cpu}"
        if self.cpu not in CPU_EXTENSIONS:
            known = ", ".join(CPU_EXTENSIONS)
            raise InputError(f"--on {url}: {self.cpu} is not known here; choose one of {known}")
        if self.march not in BUILDS:
            raise InputError(
                f"--on {url}: no build {self.march}; choose one of {', '.join(BUILDS)}"
            )

    def connect(self) -> None:
        """See that emulator and program are there.

        Raises:
            MissingSetupError: one is not.
        """
        if shutil.which(EMULATOR) is None:
            raise MissingSetupError(
                f"{EMULATOR} not found; on Debian or Ubuntu type: sudo apt install {PACKAGES}"
            )
        program_of(self.march)

    @property
    def program(self) -> str:
        """See `Transport.program`; for this build."""
        return str(program_of(self.march))

    def place(self, files: Sequence[NeededFile]) -> int:
        """Nothing is to be copied."""
        return 0

    def run(
        self, arguments: Sequence[str], files: Sequence[NeededFile], *, timeout_s: float | None
    ) -> Ended:
        """See `Transport.run`; a negative exit code is the signal that ended the program."""
        # A core file of the emulator would land in the folder, and go with it.
        command = [EMULATOR, "-cpu", self.cpu, self.program, *arguments]
        if shutil.which("setpriv"):  # not even our own SIGKILL leaves it running
            command = ["setpriv", "--pdeathsig", "KILL", *command]
        with tempfile.TemporaryDirectory() as folder:
            for file in files:
                target = Path(folder) / file.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(file.path.resolve())
            try:
                done = subprocess.run(
                    command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True,
                    timeout=timeout_s, check=False,
                )  # fmt: skip
            except subprocess.TimeoutExpired as error:
                failure = HostFailure(f"the {self.name} did not finish within {timeout_s:g} s")
                failure.timed_out = True
                raise failure from error
        lines = [line for line in done.stderr.decode("utf-8", "replace").splitlines() if line]
        return Ended(done.returncode, done.stdout, lines[-1] if lines else "it said nothing")

    def why_ended(self, ended: Ended) -> str:
        """Why the program failed, in a sentence."""
        if ended.code != -signal.SIGILL:
            name = f"exit code {ended.code}"
            with contextlib.suppress(ValueError):
                name = signal.Signals(-ended.code).name
            return f"the program failed on {self.cpu}: {ended.last_words} ({name})"
        needs = self.march.split("+")[1:]
        lacks = [name for name in needs if name not in CPU_EXTENSIONS[self.cpu]]
        if not lacks:
            return f"illegal instruction: {self.cpu} does not run the {self.march} build"
        return f"illegal instruction: {foreign_build(lacks, self.cpu)}"
