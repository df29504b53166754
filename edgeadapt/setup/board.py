"""A folder to copy to a 64-bit Arm board: wheels of edgeadapt, of llama.cpp and of what they need.

llama-cpp-python is compiled here, by Debian's cross compiler, with the instruction sets that the
board's profile lists; on the board nothing is compiled and nothing fetched.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import edgeadapt
from edgeadapt.console import log
from edgeadapt.cpu import Cpu
from edgeadapt.devices import DeviceProfile, load_profile
from edgeadapt.errors import InputError, MissingSetupError, RuntimeFailure, UnsupportedError
from edgeadapt.files import atomic_folder, cache_dir, sha256_json, write_json
from edgeadapt.setup import RECORD, build
from edgeadapt.setup.board_check import glibc_needed
from edgeadapt.setup.cpu import choose_options, cpuinfo_names, enabled
from edgeadapt.setup.llama_cpp import FIXED_OPTIONS, VERSION

PACKAGES = "g++-aarch64-linux-gnu cmake ninja-build"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")

_PREFIX = "aarch64-linux-gnu-"
_CROSS = {
    "CMAKE_SYSTEM_NAME": "Linux",
    "CMAKE_SYSTEM_PROCESSOR": "aarch64",
    "CMAKE_C_COMPILER": f"{_PREFIX}gcc",
    "CMAKE_CXX_COMPILER": f"{_PREFIX}g++",
    "GGML_OPENMP": "OFF",  # ggml's own threads; a bare board has no libgomp
}
_OLD_GLIBC = ("manylinux_2_17_aarch64", "manylinux2014_aarch64", "manylinux_2_28_aarch64")
"""What wheels of the dependencies are tagged with; pip wants each named."""
_LINUX = re.compile("linux|raspberry|ubuntu|debian", re.IGNORECASE)
_SYMBOL = re.compile(r"\(GLIBC_2\.(\d+)\)|\bGLIBC_2\.(\d+)\b")


@dataclass(frozen=True)
class BoardSetup:
    """What `setup_board` made."""

    folder: str
    device: str
    features: str
    """Instruction sets of llama.cpp's kernels, as GCC's -march."""
    python: str
    glibc: str
    """The oldest C library that the board may have."""
    wheels: tuple[str, ...]
    size_bytes: int


def setup_board(device: str, out: Path, *, python: str = PYTHONS[0]) -> BoardSetup:
    """Make a folder of wheels and an `install.sh` for a board.

    Args:
        device: name of a profile, or a profile's file.
        out: folder to make.
        python: version on the board, one of `PYTHONS`.

    Raises:
        InputError: no such device or version, or `out` is there already.
        UnsupportedError: the device is no 64-bit Arm machine with Linux.
        MissingSetupError: there is no cross compiler or cmake; names the packages.
        RuntimeFailure: a build or download failed.
    """
    if python not in PYTHONS:
        raise InputError(f"--python {python}: choose one of {', '.join(PYTHONS)}")
    profile = load_profile(device)
    cpu = _cpu_of(profile)
    with atomic_folder(out) as partial:
        wheels = partial / "wheels"
        wheels.mkdir()
        llama = _llama_cpp(cpu)
        shutil.copy2(llama, wheels)
        _own_wheel(wheels)
        _download(wheels, python, llama)
        script = files("edgeadapt.setup").joinpath("board_install.sh.txt").read_text("utf-8")
        text = script.replace("@PYTHON@", python).replace("@DEVICE@", profile.title)
        (partial / "install.sh").write_text(text, encoding="utf-8", newline="\n")
        found = sorted(wheels.iterdir())
        size = sum(path.stat().st_size for path in found)
    names = tuple(path.name for path in found)
    glibc = f"2.{glibc_needed(names)}"
    return BoardSetup(
        str(out), profile.name, enabled(choose_options(cpu)), python, glibc, names, size
    )


def _cpu_of(profile: DeviceProfile) -> Cpu:
    if profile.cpu.arch != "aarch64" or not _LINUX.search(profile.os):
        raise UnsupportedError(
            f"{profile.name} is {profile.cpu.arch} with {profile.os}; wheels are made for 64-bit "
            "Arm with Linux: on other machines type pip install and edgeadapt setup llama-cpp there"
        )
    return Cpu("aarch64", profile.title, cpuinfo_names(profile.cpu.isa))


def _llama_cpp(cpu: Cpu) -> Path:
    """The cross-compiled wheel, from the cache or built now."""
    options = choose_options(cpu)
    # The same record as a build on the board would have: `edgeadapt setup llama-cpp` keeps it.
    record: dict[str, Any] = {
        "version": VERSION, "options": options, "features": enabled(options), "cmake_args": "",
    }  # fmt: skip
    given = options | _CROSS | FIXED_OPTIONS
    folder = cache_dir() / "wheels" / f"{VERSION}-py3-aarch64-{sha256_json(given)[:12]}"
    if not list(folder.glob("*.whl")):
        missing = [n for n in (f"{_PREFIX}gcc", f"{_PREFIX}g++", "cmake") if not shutil.which(n)]
        if missing:
            raise MissingSetupError(
                f"{', '.join(missing)} not found; on Debian or Ubuntu type: "
                f"sudo apt install {PACKAGES}"
            )
        log.info("cross-compiling llama-cpp-python %s for %s", VERSION, enabled(options))
        scratch = cache_dir() / "build" / folder.name
        with atomic_folder(folder, overwrite=True) as partial:
            made = partial / "made"
            build.wheel(VERSION, given, record, scratch, made)
            retag(next(made.glob("*.whl")), partial)
            shutil.rmtree(made)
            write_json(partial / RECORD, record)
    return next(folder.glob("*.whl"))


def retag(wheel: Path, out: Path) -> None:
    """Give a wheel the platform of the libraries in it, instead of the building machine's.

    The tag names the newest symbol version of glibc that they ask for, so that pip refuses the
    wheel where the C library is older (PEP 600).

    Raises:
        RuntimeFailure: the libraries cannot be read, or `wheel` cannot be had.
    """
    with tempfile.TemporaryDirectory() as folder:
        libraries = Path(folder) / "libraries"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(libraries)
        minor = glibc_minor(p for p in libraries.rglob("*.so*") if p.is_file())
        tools = Path(folder) / "tools"
        build.pip("install", "--quiet", "--target", str(tools), "wheel")
        moved = Path(shutil.copy2(wheel, folder))
        _call(
            [sys.executable, "-m", "wheel", "tags", "--remove",
             "--platform-tag", f"manylinux_2_{minor}_aarch64", str(moved)],
            PYTHONPATH=str(tools),
        )  # fmt: skip
        (made,) = Path(folder).glob("*.whl")
        shutil.copy2(made, out)


def glibc_minor(libraries: Iterable[Path]) -> int:
    """The newest `GLIBC_2.<minor>` that any of the libraries asks for; 17 at least.

    Raises:
        RuntimeFailure: objdump of the cross compiler cannot read one.
    """
    newest = 17
    for path in libraries:
        text = _call([f"{_PREFIX}objdump", "-T", str(path)])
        found = (int(first or second) for first, second in _SYMBOL.findall(text))
        newest = max(newest, *found, newest)
    return newest


def _own_wheel(out: Path) -> None:
    """edgeadapt's wheel: built from a copy of the clone this runs from, else downloaded."""
    root = Path(edgeadapt.__file__).parents[1]
    if not (root / "pyproject.toml").is_file():
        build.pip(
            "download", "--no-deps", "--dest", str(out), f"edgeadapt=={edgeadapt.__version__}"
        )
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "source"
        copy.mkdir()
        for name in ("edgeadapt", "converters", "runtimes", "device_profiles"):
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(root / name, copy / name, symlinks=True, ignore=ignore)
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy2(root / name, copy)
        build.pip("wheel", "--no-deps", "--wheel-dir", str(out), str(copy))


def _download(wheels: Path, python: str, llama: Path) -> None:
    (own,) = wheels.glob("edgeadapt-*.whl")
    constraints = Path(edgeadapt.__file__).parents[1] / "constraints.txt"
    platforms = (*_OLD_GLIBC, f"manylinux_2_{glibc_needed([llama.name])}_aarch64")
    log.info("downloading wheels for Python %s on aarch64", python)
    build.pip(
        "download", "--dest", str(wheels), "--find-links", str(wheels), "--only-binary", ":all:",
        "--implementation", "cp", "--python-version", python,
        *(word for name in dict.fromkeys(platforms) for word in ("--platform", name)),
        *(("--constraint", str(constraints)) if constraints.is_file() else ()),
        f"{own}[llama-cpp]", f"llama-cpp-python=={VERSION}", "pip",
    )  # fmt: skip


def _call(command: list[str], **environment: str) -> str:
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeFailure(f"{command[0]} failed: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout
