"""pip and cmake: from llama-cpp-python's source archive to an installed wheel."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edgeadapt.console import Advance, log, progress
from edgeadapt.cpu import usable_cpus
from edgeadapt.errors import RuntimeFailure
from edgeadapt.files import write_json
from edgeadapt.memory import available_memory
from edgeadapt.setup import RECORD

_PACKAGE = "llama-cpp-python"
_COMPILER_BYTES = 1 << 30
_STEP = re.compile(r"^\s*\[\s*(\d+)/(\d+)\]")
"""ninja's progress."""
_ERROR = re.compile(r".*\berror:(?! subprocess-exited)|CMake Error")
"""A compiler's or cmake's error line; pip's own "subprocess-exited-with-error" tells nothing."""

_INCLUDE = f"""\
# Read by cmake right after llama.cpp's project() line, see CMAKE_PROJECT_<name>_INCLUDE.
# llama.cpp's "common" library is half of the build and only its own programs use it;
# llama-cpp-python's CMakeLists.txt switches it on in the cache, which this variable overrides.
set(LLAMA_BUILD_COMMON OFF)
install(FILES "${{CMAKE_CURRENT_LIST_DIR}}/{RECORD}" DESTINATION llama_cpp)
"""


def wheel(
    version: str, options: dict[str, str], record: dict[str, Any], scratch: Path, out: Path
) -> None:
    """Build a wheel into `out`.

    The source is unpacked to `scratch`, a path that stays the same, so that a build that was
    interrupted goes on where it stopped and ccache (which ggml uses when it is installed) finds
    its entries again. `scratch` is removed when the wheel is done.

    Args:
        version: of llama-cpp-python.
        options: cmake options; the user's own CMAKE_ARGS come after them and win.
        record: written into the wheel as `llama_cpp/edgeadapt-build.json`.
        scratch: folder to build in.
        out: folder for the wheel.

    Raises:
        RuntimeFailure: there is no compiler, or a step failed; names the log file.
    """
    check_compilers()
    scratch.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(scratch.parent / f"{scratch.name}.lock") as lock:
        _build(version, options, record, scratch, out, lock)
    shutil.rmtree(scratch, ignore_errors=True)


def _build(
    version: str,
    options: dict[str, str],
    record: dict[str, Any],
    scratch: Path,
    out: Path,
    lock: int | None,
) -> None:
    source = unpacked_source(version, scratch)
    write_json(scratch / RECORD, record)
    include = scratch / "include.cmake"
    include.write_text(_INCLUDE, encoding="utf-8")
    given = {**options, "CMAKE_PROJECT_llama.cpp_INCLUDE": include.as_posix()}
    arguments = [f"-D{name}={value}" for name, value in given.items()]
    environment = {
        **os.environ,
        "CMAKE_ARGS": " ".join([*arguments, os.environ.get("CMAKE_ARGS", "")]).strip(),
        "CMAKE_BUILD_PARALLEL_LEVEL": os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(jobs())),
        "SKBUILD_BUILD_DIR": str(scratch / "cmake"),
    }
    pip_wheel = (sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "--no-cache-dir")
    command = (*pip_wheel, "--wheel-dir", str(out), str(source))
    log_file = scratch.parent / f"{scratch.name}.log"
    run_with_progress(command, environment, log_file, lock)


@contextlib.contextmanager
def one_at_a_time(path: Path) -> Iterator[int | None]:
    """Wait until no other process builds in the same place; yields the lock's file descriptor.

    pip inherits it, so that a compilation which outlives a killed parent keeps its folder.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield None
        return
    with path.open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another build in %s", path.parent)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def check_compilers() -> None:
    """See that there is something to compile with, before minutes go by.

    cmake and ninja need no check: the build backend brings them along where they are missing.

    Raises:
        RuntimeFailure: naming what to install.
    """
    missing = [
        language
        for language, variable, names in (
            ("C", "CC", ("cc", "gcc", "clang", "cl")),
            ("C++", "CXX", ("c++", "g++", "clang++", "cl")),
        )
        if not os.environ.get(variable) and not any(map(shutil.which, names))
    ]
    if missing:
        raise RuntimeFailure(
            f"building llama.cpp needs a {' and a '.join(missing)} compiler, and none was found; "
            "on Debian or Ubuntu type: sudo apt install g++ cmake; on macOS: xcode-select --install"
        )


def jobs() -> int:
    """Compilers to run at a time: one per core, and no more than the free memory holds."""
    return max(1, min(usable_cpus(), available_memory() // _COMPILER_BYTES))


def install(path: Path) -> None:
    """Install a wheel into the running interpreter, in place of any that is there.

    Raises:
        RuntimeFailure: pip says no.
    """
    log.info("installing %s", path.name)
    pip("install", str(path))  # brings what it depends on; keeps an installed one of this version
    pip("install", "--force-reinstall", "--no-deps", str(path))


def pip(*arguments: str) -> None:
    """Run pip of the running interpreter, quietly. Its own settings and variables apply.

    Raises:
        RuntimeFailure: with pip's last word.
    """
    done = subprocess.run(
        (sys.executable, "-m", "pip", *arguments),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    log.debug("%s%s", done.stdout, done.stderr)
    if done.returncode != 0:
        raise RuntimeFailure(f"pip {arguments[0]} failed: {_last_word(done.stdout + done.stderr)}")


def parse_step(line: str) -> tuple[int, int] | None:
    """The `[3/83]` at the start of a line of ninja's output, if there is one."""
    match = _STEP.match(line)
    return (int(match[1]), int(match[2])) if match else None


def unpacked_source(version: str, scratch: Path) -> Path:
    """Download and unpack the source archive, unless an interrupted build left it.

    Raises:
        RuntimeFailure: pip could not fetch it.
    """
    source = scratch / "source"
    if not source.is_dir():
        log.info("downloading the source of %s %s", _PACKAGE, version)
        archives = scratch / "archive"
        pip("download", "--no-deps", "--no-binary", _PACKAGE, "--dest", str(archives),
            f"{_PACKAGE}=={version}")  # fmt: skip
        unpacked = scratch / "unpacked"
        with tarfile.open(next(archives.glob("*.tar.gz"))) as archive:
            archive.extractall(unpacked, filter="data")
        next(unpacked.iterdir()).rename(source)
    return source


def run_with_progress(
    command: Sequence[str],
    environment: dict[str, str],
    log_file: Path,
    lock: int | None,
    what: str = _PACKAGE,
) -> None:
    """Run a build; from ninja's first line on, which tells the number of steps, show how far it is.

    Raises:
        RuntimeFailure: it failed; names the log file.
    """
    advance: Advance | None = None
    done = 0
    with contextlib.ExitStack() as stack:
        for line in _run(command, environment, log_file, lock, what):
            log.debug("%s", line.rstrip())
            step = parse_step(line)
            if step is None:
                continue
            if advance is None:
                advance = stack.enter_context(progress("compiling llama.cpp", step[1], "steps"))
            if step[0] > done:
                advance(step[0] - done)
                done = step[0]


def _run(
    command: Sequence[str],
    environment: dict[str, str],
    log_file: Path,
    lock: int | None = None,
    what: str = _PACKAGE,
) -> Iterator[str]:
    """Lines of a build's output, which also go to `log_file`; when left early, it and all that it
    started are ended."""
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        pass_fds=() if lock is None else (lock,),
    )
    assert process.stdout is not None  # it was asked for above
    with _ended_with_us(process), log_file.open("w", encoding="utf-8", buffering=1) as file:
        for line in process.stdout:
            file.write(line)
            yield line
    if process.returncode != 0:
        text = log_file.read_text(encoding="utf-8")
        raise RuntimeFailure(
            f"building {what} failed: {_last_word(text)}; all of it is in {log_file}"
        )


@contextlib.contextmanager
def _ended_with_us(process: subprocess.Popen[str]) -> Iterator[None]:
    """End a process that leads a session, and its children, when the block is left early.

    Also on SIGTERM, which would otherwise end this program and leave the compilers running.
    """
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)) if in_main else None
    try:
        yield
        process.wait()
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, before)
        if process.poll() is None and hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def _last_word(text: str) -> str:
    """The line that tells most: the first error of a compiler or cmake, else pip's last one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    first = [line for line in lines if _ERROR.match(line)][:1]
    last = [line for line in lines if line.startswith("ERROR:")][-1:] or lines[-1:]
    return (first or last or ["it said nothing"])[0][:300]
