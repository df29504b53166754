"""Cross-compile llama.cpp for 64-bit Arm, static, to try artifacts on emulated CPUs.

Debian's and Ubuntu's packages are enough: g++-aarch64-linux-gnu, cmake, ninja-build, qemu-user. The
source is the archive that llama-cpp-python is built from.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from edgeadapt.console import log
from edgeadapt.errors import MissingSetupError
from edgeadapt.files import atomic_folder, cache_dir, sha256_file, sha256_json
from edgeadapt.setup.llama_cpp import VERSION
from edgeadapt.setup.workshop import workshop

BUILDS = ("armv8-a", "armv8.2-a+dotprod+fp16")
"""GCC's -march of each program: what a Raspberry Pi 4 runs, and what a Raspberry Pi 5 runs."""

PROGRAM = "greedy"
PACKAGES = "g++-aarch64-linux-gnu cmake ninja-build qemu-user"


@dataclass(frozen=True)
class Aarch64Setup:
    """What `setup_aarch64` did."""

    action: str
    """`kept` or `built`."""
    version: str
    """Of llama-cpp-python."""
    programs: dict[str, str]
    """-march -> path of the program."""


def program_of(march: str) -> Path:
    """The program that was built for a -march.

    Raises:
        MissingSetupError: it was not built.
    """
    path = _folder() / march / PROGRAM
    if not path.is_file():
        raise MissingSetupError(
            f"llama.cpp for {march} is not built yet (that takes minutes, once); "
            "type: edgeadapt setup qemu"
        )
    return path


def setup_aarch64(*, rebuild: bool = False) -> Aarch64Setup:
    """See that the programs of `BUILDS` are in the cache.

    Args:
        rebuild: build even if they are there.

    Raises:
        MissingSetupError: there is no cross compiler, cmake or emulator; names the packages.
        RuntimeFailure: the build failed; names the log file.
    """
    folder, action = _folder(), "kept"
    if rebuild or not all((folder / march / PROGRAM).is_file() for march in BUILDS):
        _check_tools("aarch64-linux-gnu-gcc", "aarch64-linux-gnu-g++", "cmake", "ninja")
        _build(folder)
        action = "built"
    _check_tools("qemu-aarch64")
    programs = {march: str(folder / march / PROGRAM) for march in BUILDS}
    return Aarch64Setup(action, VERSION, programs)


def _folder() -> Path:
    with as_file(files("edgeadapt.setup.aarch64")) as recipe:
        hashes = [sha256_file(recipe / name) for name in ("CMakeLists.txt", f"{PROGRAM}.cpp")]
    return cache_dir() / "aarch64" / f"{VERSION}-{sha256_json([hashes, BUILDS])[:12]}"


def _check_tools(*names: str) -> None:
    missing = [name for name in names if shutil.which(name) is None]
    if missing:
        raise MissingSetupError(
            f"{', '.join(missing)} not found; on Debian or Ubuntu type: sudo apt install {PACKAGES}"
        )


def _build(folder: Path) -> None:
    with (
        workshop(f"aarch64-{folder.name}", VERSION) as shop,
        as_file(files("edgeadapt.setup.aarch64")) as recipe,
        atomic_folder(folder, overwrite=True) as partial,
    ):
        for march in BUILDS:  # in one place: only ggml's kernels are compiled again
            log.info("building llama.cpp for %s", march)
            shop.compile(recipe, _options(march), (PROGRAM,), f"llama.cpp for {march}")
            (partial / march).mkdir()
            shutil.copy2(shop.scratch / "cmake" / PROGRAM, partial / march / PROGRAM)


def _options(march: str) -> dict[str, str]:
    return {
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": "aarch64",
        "CMAKE_C_COMPILER": "aarch64-linux-gnu-gcc",
        "CMAKE_CXX_COMPILER": "aarch64-linux-gnu-g++",
        "CMAKE_BUILD_TYPE": "None",
        "CMAKE_C_FLAGS": "-O2 -DNDEBUG",
        "CMAKE_CXX_FLAGS": "-O1 -DNDEBUG",  # its speed is not measured; compiling it takes minutes
        "GGML_CPU_ARM_ARCH": march,
        **dict.fromkeys(
            ("BUILD_SHARED_LIBS", "GGML_NATIVE", "GGML_OPENMP", "GGML_CCACHE", "LLAMA_BUILD_COMMON",
             "LLAMA_BUILD_TESTS", "LLAMA_BUILD_TOOLS", "LLAMA_BUILD_EXAMPLES",
             "LLAMA_BUILD_SERVER"),
            "OFF",
        ),
    }  # fmt: skip
