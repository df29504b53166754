"""Build llama-cpp-python for this CPU, install it, and prove that it computes.

A wheel is cached under the instruction sets that it was built with, never under its version alone:
one built on another CPU dies here with an illegal instruction. The wheel carries a small record of
how it was built (`llama_cpp/edgeadapt-build.json`), which goes with it wherever it is installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeadapt.console import log
from edgeadapt.cpu import Cpu, this_cpu
from edgeadapt.errors import RuntimeFailure
from edgeadapt.files import atomic_folder, cache_dir, read_json, sha256_json, write_json
from edgeadapt.setup import RECORD, build
from edgeadapt.setup.cpu import choose_options, enabled
from edgeadapt.setup.cuda import cuda_options

VERSION = "0.3.36"
"""Of llama-cpp-python; the pin in constraints.txt."""

SELF_TEST = (sys.executable, "-m", "edgeadapt.setup.self_test")
_SELF_TEST_TIMEOUT_S = 300
_FAILED = "failed.json"
FIXED_OPTIONS = {
    "LLAVA_BUILD": "OFF",  # images; a third of the build
    # Into the package only: llama.cpp's own install rules put second copies into
    # site-packages/lib and headers into site-packages/include.
    "CMAKE_INSTALL_LIBDIR": "llama_cpp/lib",
    "CMAKE_INSTALL_BINDIR": "llama_cpp/lib",
    "CMAKE_INSTALL_INCLUDEDIR": "llama_cpp/include",
}


@dataclass(frozen=True)
class SelfTest:
    """How the decode in a child process ended."""

    passed: bool
    text: str
    """What it said, or which signal killed it."""


@dataclass(frozen=True)
class SetupResult:
    """What `setup_llama_cpp` did."""

    action: str
    """`kept` (nothing to do), `installed` (from the cache) or `built`."""
    version: str
    options: dict[str, str]
    """Cmake options that chose the instruction sets; empty where ggml chose itself."""
    features: str
    """The same in words."""
    self_test: str
    fallback: bool
    """True when the full list died here and the plain build is in place."""
    wheel: str | None


def build_record() -> dict[str, Any] | None:
    """How the installed llama-cpp-python was built, or None if it was not built here.

    Keys: `version`, `options` (cmake), `features`, `cpu`, `cmake_args` (the user's own).
    Does not load the library.
    """
    importlib.invalidate_caches()  # it may have been installed a moment ago
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / RECORD
    return read_json(path) if path.is_file() else None


def setup_llama_cpp(
    *, rebuild: bool = False, cuda: bool = False, version: str = VERSION
) -> SetupResult:
    """See that llama-cpp-python is installed, built for this CPU, and computes.

    Does nothing when it is and does. Otherwise installs a wheel from the cache, building it first
    if there is none. If the self-test dies, the same is tried with AVX2 only (plain Armv8 on Arm).

    Args:
        rebuild: build even if a wheel is cached or installed.
        cuda: with kernels for this machine's NVIDIA GPU, which the self-test then runs on.
        version: of llama-cpp-python.

    Raises:
        MissingSetupError: for `cuda` there is no nvcc, or no GPU.
        RuntimeFailure: no compiler, the build failed, or no build computes on this CPU.
    """
    cpu = this_cpu()
    log.info("CPU: %s", cpu.name)
    gpu = cuda_options() if cuda else {}
    wanted = [choose_options(cpu) | gpu]
    if (safe := choose_options(cpu, safe=True) | gpu) != wanted[0]:
        wanted.append(safe)
    outcome = SelfTest(False, "")
    for attempt, options in enumerate(wanted):
        plan = _Plan(version, options, cpu)
        failure = None if rebuild else plan.known_failure()
        if failure and attempt + 1 < len(wanted):
            log.info("the build with %s is known to fail here: %s", plan.features, failure)
            continue
        result, outcome = plan.fulfil(rebuild)
        if outcome.passed:
            return replace(result, fallback=attempt > 0)
        log.warning("llama.cpp built with %s fails here: %s", plan.features, outcome.text)
        plan.remember_failure(outcome.text)
    build.pip("uninstall", "--yes", "llama-cpp-python")
    instead = "leave --cuda out" if cuda else "use ONNX instead: pip install 'edgeadapt[onnx]'"
    raise RuntimeFailure(
        f"llama.cpp does not compute here even when built with {enabled(wanted[-1])} "
        f"({outcome.text}); it was uninstalled again, {instead}"
    )


def run_self_test(command: tuple[str, ...] = SELF_TEST) -> SelfTest:
    """Decode a quantized model in a child process, which a wrong build kills.

    Args:
        command: what to run; see `edgeadapt.setup.self_test`.
    """
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=_SELF_TEST_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return SelfTest(False, f"it did not finish in {_SELF_TEST_TIMEOUT_S} s")
    said = (done.stdout.strip() or done.stderr.strip() or "it said nothing").splitlines()[-1]
    if done.returncode < 0:
        return SelfTest(False, f"it was killed by {_signal_name(-done.returncode)}")
    if done.returncode != 0:
        return SelfTest(False, f"{said} (exit code {done.returncode})")
    return SelfTest(True, said)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


@dataclass(frozen=True)
class _Plan:
    """One set of options, from the cache folder to the installed package."""

    version: str
    options: dict[str, str]
    cpu: Cpu

    @property
    def features(self) -> str:
        return enabled(self.options)

    @property
    def record(self) -> dict[str, Any]:
        """What identifies the build; written into the wheel."""
        return {
            "version": self.version,
            "options": self.options,
            "features": self.features,
            "cmake_args": os.environ.get("CMAKE_ARGS", ""),
        }

    @property
    def folder(self) -> Path:
        """`<version>-<python tag>-<machine>-<hash>`; the wheel has no part that depends on the
        Python version, so its tag is py3."""
        key = sha256_json(self.record)[:12]
        return cache_dir() / "wheels" / f"{self.version}-py3-{self.cpu.machine}-{key}"

    @property
    def self_test(self) -> tuple[str, ...]:
        """The command; where the kernels are a GPU's, it is computed there."""
        return (*SELF_TEST, "--gpu") if "GGML_CUDA" in self.options else SELF_TEST

    def fulfil(self, rebuild: bool) -> tuple[SetupResult, SelfTest]:
        """Have it installed and tested."""
        installed = build_record()
        if not rebuild and installed and self.record.items() <= installed.items():
            outcome = run_self_test(self.self_test)
            if outcome.passed:
                return self._result("kept", outcome), outcome
            log.info("the installed llama.cpp fails its self-test: %s", outcome.text)
        action = "installed"
        if rebuild or not self.wheels():
            self._build()
            action = "built"
        build.install(self.wheels()[0])
        outcome = run_self_test(self.self_test)
        return self._result(action, outcome), outcome

    def wheels(self) -> list[Path]:
        return sorted(self.folder.glob("*.whl"))

    def _result(self, action: str, outcome: SelfTest) -> SetupResult:
        wheel = str(self.wheels()[0]) if self.wheels() else None
        return SetupResult(
            action, self.version, self.options, self.features, outcome.text, False, wheel
        )

    def _build(self) -> None:
        log.info("building llama-cpp-python %s with %s", self.version, self.features)
        record = self.record | {"cpu": self.cpu.name}
        scratch = cache_dir() / "build" / self.folder.name
        with atomic_folder(self.folder, overwrite=True) as partial:
            build.wheel(self.version, self.options | FIXED_OPTIONS, record, scratch, partial)
            write_json(partial / RECORD, record)

    def known_failure(self) -> str | None:
        """Why this very build failed before on a CPU of this name, if it did."""
        path = self.folder / _FAILED
        if not path.is_file():
            return None
        failed = read_json(path)
        return str(failed["why"]) if failed.get("cpu") == self.cpu.name else None

    def remember_failure(self, why: str) -> None:
        write_json(self.folder / _FAILED, {"cpu": self.cpu.name, "why": why})
