"""Can this machine run what a board's folder holds? `install.sh` asks before it writes anything.

`python -m edgeadapt.setup.board_check WHEELS` runs out of edgeadapt's own wheel, on the standard
library alone. Exit codes: 0 it can, 1 it cannot, with one sentence on stderr.
"""

from __future__ import annotations

import json
import os
import re
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

from edgeadapt.cpu import Cpu, this_cpu
from edgeadapt.setup import RECORD
from edgeadapt.setup.cpu import foreign_build, lacking

_ANEW = (
    "on the workstation type edgeadapt setup board DEVICE --out board, with this machine's name "
    "from edgeadapt devices list"
)
_GLIBC_TAG = re.compile(r"manylinux_2_(\d+)_")


def main(wheels: str) -> int:
    """Check this machine; returns the exit code."""
    why = refusal(Path(wheels), this_cpu(), this_glibc())
    if why is None:
        return 0
    print(why, file=sys.stderr)  # noqa: T201
    return 1


def refusal(wheels: Path, cpu: Cpu, glibc: int | None) -> str | None:
    """Why wheels do not run on a machine, in a sentence; None if they do.

    Args:
        wheels: the folder, with one wheel of llama-cpp-python that `setup board` made.
        cpu: of the machine.
        glibc: minor version of its C library, None if that is another one.
    """
    (llama,) = wheels.glob("llama_cpp_python-*.whl")
    with zipfile.ZipFile(llama) as archive:
        options = json.loads(archive.read(f"llama_cpp/{RECORD}"))["options"]
    if lacks := lacking(options, cpu):
        return f"the folder is for another CPU: {foreign_build(lacks, cpu.name)}; {_ANEW}"
    needed = glibc_needed(path.name for path in wheels.iterdir())
    if glibc is None:
        return "the wheels need GNU's C library (glibc), and this system has another one"
    if glibc < needed:
        return (
            f"the wheels need glibc 2.{needed}, and this system has 2.{glibc}; take a newer system "
            "for the board, or make the folder on an older workstation"
        )
    return None


def glibc_needed(names: Iterable[str]) -> int:
    """Minor version of the oldest glibc that takes each of these wheels, by their names' tags."""
    tags = ([int(minor) for minor in _GLIBC_TAG.findall(name)] for name in names)
    return max((min(found) for found in tags if found), default=17)


def this_glibc() -> int | None:
    """Minor version of the C library here, if it is glibc 2."""
    try:
        text = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, OSError, ValueError):
        return None
    match = re.fullmatch(r"glibc 2\.(\d+).*", text)
    return int(match[1]) if match else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
