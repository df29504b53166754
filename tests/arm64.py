"""A Debian for 64-bit Arm in a folder, whose programs run on an emulated board.

Nothing of this machine is changed: apt works in folders of its own, and the kernel is told of the
emulator in a user namespace of its own, where the folder is the root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("python3", "libstdc++6", "dash", "coreutils")
"""What any board has that runs Python; neither pip nor venv's package nor a compiler."""

_TOOLS = {
    "qemu-aarch64": "qemu-user", "unshare": "util-linux", "mount": "util-linux",
    "apt-get": "apt", "dpkg-deb": "dpkg",
}  # fmt: skip

_ENTER = r"""
set -eu
root=$1 emulator=$2; shift 2
mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
printf %s ':board:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:'"$emulator:F" \
    > /proc/sys/fs/binfmt_misc/register
mount --rbind /dev "$root/dev"
mount --rbind /proc "$root/proc"
mount --bind "$root/cpuinfo" "$root/proc/cpuinfo"
exec chroot "$root" "$@"
"""  # noqa: E501

PARTS = {"cortex-a72": ("0xd08", "Raspberry Pi 4 Model B Rev 1.4"),
         "cortex-a76": ("0xd0b", "Raspberry Pi 5 Model B Rev 1.0")}  # fmt: skip
"""QEMU's name -> part number and board, as /proc/cpuinfo there tells them."""


class NoRootError(Exception):
    """There cannot be such a folder on this machine; the message says why."""


@dataclass(frozen=True)
class Done:
    """How a program on the board ended."""

    code: int
    stdout: str
    stderr: str
    peak_bytes: int
    """Resident, of the largest process, the emulator's own memory included."""


@dataclass(frozen=True)
class Board:
    """The folder, as a board with a CPU."""

    root: Path
    cpu: str

    def run(self, *words: str) -> Done:
        """Run a program, in the root folder, and wait."""
        part, name = PARTS[self.cpu]
        # No `Features`: which there are, the emulator tells each program itself.
        core = f"processor\t: {{}}\nCPU implementer\t: 0x41\nCPU part\t: {part}\n\n"
        text = "".join(core.format(number) for number in range(4)) + f"Model\t\t: {name}\n"
        (self.root / "cpuinfo").write_text(text)
        emulator = shutil.which("qemu-aarch64")
        out, err = self.root.with_name("stdout"), self.root.with_name("stderr")
        with out.open("w") as stdout, err.open("w") as stderr:
            process = subprocess.Popen(
                ["unshare", "-Urm", "sh", "-c", _ENTER, "enter", self.root, emulator, *words],
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8",
                     "QEMU_CPU": self.cpu},
                stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr,
            )  # fmt: skip
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        peak = usage.ru_maxrss << 10
        return Done(process.returncode, out.read_text(), err.read_text(), peak)


def make_root(folder: Path) -> Path:
    """Fetch the packages and unpack them below `folder`, which is to be empty.

    Raises:
        NoRootError: a tool is missing, the packages are not to be had, or nothing runs there.
    """
    missing = {package for tool, package in _TOOLS.items() if not shutil.which(tool)}
    if missing:
        raise NoRootError(f"needs {' '.join(sorted(missing))}")
    root = folder / "root"
    for name in ("dev", "proc", "root", "tmp"):
        (root / name).mkdir(parents=True)
    for archive in _fetch(folder / "apt"):
        _call("dpkg-deb", "-x", archive, root)
    for name in ("bin", "lib"):  # where packages do not bring these themselves
        if not (root / name).exists():
            (root / name).symlink_to(f"usr/{name}")
    _carry_libraries(Path(shutil.which("qemu-aarch64") or ""), root)
    done = Board(root, "cortex-a72").run("/bin/sh", "-c", "true")
    if done.code:
        raise NoRootError(f"no aarch64 program runs in it: {done.stderr.strip()}")
    return root


def _fetch(folder: Path) -> list[Path]:
    (folder / "lists/partial").mkdir(parents=True)
    (folder / "cache/archives/partial").mkdir(parents=True)
    (folder / "status").touch()
    settings = {
        "APT::Architecture": "arm64", "APT::Architectures": "arm64",
        "APT::Install-Recommends": "false", "APT::Sandbox::User": "root", "Dir::State": folder,
        "Dir::State::status": folder / "status", "Dir::State::Lists": folder / "lists",
        "Dir::Cache": folder / "cache",
    }  # fmt: skip
    apt = ("apt-get", "-qq", *(f"-o{name}={value}" for name, value in settings.items()))
    _call(*apt, "update")
    _call(*apt, "install", "--yes", "--download-only", *PACKAGES)
    return sorted((folder / "cache/archives").glob("*.deb"))


def _carry_libraries(program: Path, root: Path) -> None:
    """Copy what a program of this machine loads to the same places, which no Arm program uses."""
    for word in _call("ldd", program).split():
        if word.startswith("/"):
            target = root / word[1:]
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(word, target)


def _call(*words: object) -> str:
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode:
        raise NoRootError(f"{words[0]} failed: {done.stderr.strip()[-300:]}")
    return done.stdout
