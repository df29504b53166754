"""Build llama.cpp's own llama-bench and llama-perplexity, to compare ours with.

They come from the source archive that llama-cpp-python is built from and are linked to its very
libllama and libggml: what computes has the same flags because it is the same file.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import as_file, files
from pathlib import Path

from edgeadapt.console import log
from edgeadapt.errors import MissingSetupError, RuntimeFailure
from edgeadapt.files import atomic_folder, cache_dir, sha256_file, sha256_json
from edgeadapt.setup import build

TOOLS = ("llama-bench", "llama-perplexity")
_SUFFIX = ".exe" if sys.platform == "win32" else ""


@dataclass(frozen=True)
class ToolsSetup:
    """What `setup_llama_tools` did."""

    action: str
    """`kept` or `built`."""
    version: str
    """Of llama-cpp-python."""
    tools: dict[str, str]
    """Name -> path of the program."""


def installed_tool(name: str) -> Path:
    """Path of a program of `TOOLS` that belongs to the installed llama.cpp.

    Raises:
        MissingSetupError: it was not built.
    """
    path = _folder(_library_folder()) / f"{name}{_SUFFIX}"
    if not path.is_file():
        raise MissingSetupError(
            f"{name} of the installed llama.cpp is not there; type: edgeadapt setup llama-tools"
        )
    return path


def setup_llama_tools(*, rebuild: bool = False) -> ToolsSetup:
    """See that the programs are there and start.

    They stay in the cache, under the libraries that they were linked to.

    Args:
        rebuild: build even if they are there.

    Raises:
        MissingSetupError: llama-cpp-python is not installed with its headers, or cmake is not.
        RuntimeFailure: there is no compiler, or the build failed; names the log file.
    """
    library = _library_folder()
    folder, action = _folder(library), "kept"
    if rebuild or not all(map(_starts, _programs(folder).values())):
        _build(library, folder)
        action = "built"
    tools = _programs(folder)
    for name, path in tools.items():
        if not _starts(path):
            raise RuntimeFailure(f"{name} was built but does not start: {path}")
    paths = {name: str(path) for name, path in tools.items()}
    return ToolsSetup(action, version("llama-cpp-python"), paths)


def _programs(folder: Path) -> dict[str, Path]:
    return {name: folder / f"{name}{_SUFFIX}" for name in TOOLS}


def _starts(program: Path) -> bool:
    if not program.is_file():
        return False
    done = subprocess.run([program, "--help"], capture_output=True, check=False, timeout=60)
    return done.returncode == 0


def _library_folder() -> Path:
    """Where libllama lies in the installed package."""
    spec = importlib.util.find_spec("llama_cpp")
    folder = Path(spec.origin).parent / "lib" if spec and spec.origin else None
    if folder is None or not (folder / "cmake" / "llama").is_dir():
        raise MissingSetupError(
            "llama.cpp's programs are linked to an installed llama-cpp-python, which is not there "
            "or came without its cmake files; type: edgeadapt setup llama-cpp"
        )
    return folder


def _folder(library: Path) -> Path:
    """`<version>-<machine>-<hash>`: other libraries, or libraries elsewhere, get another."""
    hashes = {path.name: sha256_file(path) for path in sorted(library.glob("*ggml*"))}
    hashes |= {path.name: sha256_file(path) for path in sorted(library.glob("*llama*"))}
    key = sha256_json({"folder": str(library), "files": hashes})[:12]
    name = f"{version('llama-cpp-python')}-{platform.machine()}-{key}"
    return cache_dir() / "tools" / name


def _build(library: Path, folder: Path) -> None:
    build.check_compilers()
    cmake = shutil.which("cmake")
    if cmake is None:
        raise MissingSetupError("cmake is not there; type: pip install cmake ninja")
    scratch = cache_dir() / "build" / f"tools-{folder.name}"
    scratch.mkdir(parents=True, exist_ok=True)
    with (
        build.one_at_a_time(scratch.parent / f"{scratch.name}.lock") as lock,
        as_file(files("edgeadapt.setup.llama_tools") / "CMakeLists.txt") as recipe,
        atomic_folder(folder, overwrite=True) as partial,
    ):
        source = build.unpacked_source(version("llama-cpp-python"), scratch)
        log.info("building %s", " and ".join(TOOLS))
        _compile(cmake, recipe.parent, source, library, scratch, lock)
        for path in _programs(scratch / "bin").values():
            shutil.copy2(path, partial / path.name)
    shutil.rmtree(scratch, ignore_errors=True)


def _compile(
    cmake: str, recipe: Path, source: Path, library: Path, scratch: Path, lock: int | None
) -> None:
    options = {
        "SOURCE": str(source / "vendor" / "llama.cpp"),
        "llama_DIR": str(library / "cmake" / "llama"),
        "CMAKE_RUNTIME_OUTPUT_DIRECTORY": str(scratch / "bin"),
        "CMAKE_BUILD_RPATH": str(library),
    }
    made = str(scratch / "cmake")
    ninja = ("-G", "Ninja") if shutil.which("ninja") else ()
    configure = (cmake, *ninja, "-S", str(recipe), "-B", made)
    compile = (cmake, "--build", made, "--parallel", str(build.jobs()), "--target", *TOOLS)
    log_file = scratch.parent / f"{scratch.name}.log"
    for command in ((*configure, *(f"-D{k}={v}" for k, v in options.items())), compile):
        build.run_with_progress(command, dict(os.environ), log_file, lock, "llama.cpp's programs")
