"""Build llama.cpp's own llama-bench and llama-perplexity, to compare ours with.

They come from the source archive that llama-cpp-python is built from and are linked to its very
libllama and libggml: what computes has the same flags because it is the same file.
"""

from __future__ import annotations

import importlib.util
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
from edgeadapt.setup.workshop import workshop

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
    if shutil.which("cmake") is None:
        raise MissingSetupError("cmake is not there; type: pip install cmake ninja")
    with (
        workshop(f"tools-{folder.name}", version("llama-cpp-python")) as shop,
        as_file(files("edgeadapt.setup.llama_tools") / "CMakeLists.txt") as recipe,
        atomic_folder(folder, overwrite=True) as partial,
    ):
        log.info("building %s", " and ".join(TOOLS))
        made = shop.scratch / "bin"
        options = {
            "llama_DIR": str(library / "cmake" / "llama"),
            "CMAKE_RUNTIME_OUTPUT_DIRECTORY": str(made),
            "CMAKE_BUILD_RPATH": str(library),
        }
        shop.compile(recipe.parent, options, TOOLS, "llama.cpp's programs")
        for path in _programs(made).values():
            shutil.copy2(path, partial / path.name)
