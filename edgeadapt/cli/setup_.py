"""`edgeadapt setup`: native libraries for this CPU, and environments of their own."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from edgeadapt.cli.common import standard
from edgeadapt.console import emit, emit_json


@click.group("setup")
def command() -> None:
    """Build and check native libraries for this CPU; install exporters apart."""


@command.command("llama-cpp")
@click.option("--rebuild", is_flag=True, help="Build again, whatever is installed or cached.")
@click.option("--cuda", is_flag=True, help="With kernels for this machine's NVIDIA GPU.")
@standard
def llama_cpp(rebuild: bool, cuda: bool, as_json: bool) -> None:
    """Install llama.cpp (llama-cpp-python), built for this CPU and tested on it.

    The instruction sets are taken from what the system lists for the CPU; AMX is left out, since
    virtual machines name it and fault on it. A wheel that was built before with the same list is
    taken from the cache. The end is a decode of a small quantized model in a child process; if
    that dies, llama.cpp is built again with AVX2 only.

    Needs a C++ compiler; takes minutes the first time, seconds after that, and nothing is done
    when all is well. pip's own settings (PIP_INDEX_URL, PIP_CONSTRAINT, ...) and CMAKE_ARGS apply.

    --cuda, for a Jetson or a PC with an NVIDIA card, needs the CUDA toolkit (nvcc) too, and the
    test runs on the GPU. Say it again each time: without it, the build for the CPU comes back.
    """
    from edgeadapt.setup.llama_cpp import setup_llama_cpp

    result = setup_llama_cpp(rebuild=rebuild, cuda=cuda)
    if as_json:
        emit_json(asdict(result))
        return
    what = {
        "kept": "is installed and works, nothing to do",
        "installed": "installed from the cache",
        "built": "built and installed",
    }[result.action]
    emit(f"llama-cpp-python {result.version} {what}: {result.features}; {result.self_test}")


@command.command("llama-tools")
@click.option("--rebuild", is_flag=True, help="Build again, whatever is there.")
@standard
def llama_tools(rebuild: bool, as_json: bool) -> None:
    """Build llama-bench and llama-perplexity, to compare `bench` and `evaluate` with.

    They are linked to the installed llama.cpp library, so what computes is the same. Needs cmake
    and a C++ compiler; takes minutes the first time, and nothing is done when they are there.
    """
    from edgeadapt.setup.llama_tools import setup_llama_tools

    result = setup_llama_tools(rebuild=rebuild)
    if as_json:
        emit_json(asdict(result))
        return
    for path in result.tools.values():
        emit(path)


@command.command("qemu")
@click.option("--rebuild", is_flag=True, help="Build again, whatever is there.")
@standard
def qemu(rebuild: bool, as_json: bool) -> None:
    """Build llama.cpp for 64-bit Arm, for `bench --on qemu://cortex-a76`.

    Two static programs: one for every 64-bit Arm CPU, and one that needs dotprod and fp16. Needs
    g++-aarch64-linux-gnu, cmake, ninja and qemu-user; takes minutes the first time, and nothing is
    done when they are there.
    """
    from edgeadapt.setup.aarch64 import setup_aarch64

    result = setup_aarch64(rebuild=rebuild)
    if as_json:
        emit_json(asdict(result))
        return
    for march, path in result.programs.items():
        emit(f"{march}: {path}")


@command.command("board")
@click.argument("device")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to make.")
@click.option("--python", default="3.11", show_default=True, help="Version on the board.")
@standard
def board(device: str, out: Path, python: str, as_json: bool) -> None:
    """Make a folder to copy to a board, with all wheels and an install.sh.

    DEVICE is a profile of a 64-bit Arm machine with Linux. llama.cpp is cross-compiled with the
    instruction sets that the profile lists; on the board nothing is compiled and nothing fetched.
    CPU only. Raspberry Pi OS 12 has Python 3.11, 13 has 3.13.

    Needs g++-aarch64-linux-gnu, cmake and ninja; takes minutes the first time for a CPU.
    """
    from edgeadapt.setup.board import setup_board

    result = setup_board(device, out, python=python)
    if as_json:
        emit_json(asdict(result))
        return
    emit(
        f"{result.folder}: {len(result.wheels)} wheels, {result.size_bytes / 1e6:.0f} MB, for "
        f"{result.device} ({result.features}), Python {result.python}, glibc {result.glibc} or "
        f"newer; copy it there and type: sh {Path(result.folder).name}/install.sh"
    )


@command.command("optimum")
@click.option("--rebuild", is_flag=True, help="Make it anew, whatever is there.")
@standard
def optimum(rebuild: bool, as_json: bool) -> None:
    """Install optimum's ONNX exporter, for `export --exporter optimum`.

    It needs older libraries than edgeadapt, so it gets an environment of its own in the cache, or
    at $EDGEADAPT_OPTIMUM, and is run from there. Takes about a minute and 1 GB the first time;
    nothing is done when it is there. pip's own settings (PIP_INDEX_URL, ...) apply.
    """
    from edgeadapt.setup.optimum import setup_optimum

    result = setup_optimum(rebuild=rebuild)
    if as_json:
        emit_json(asdict(result))
        return
    versions = ", ".join(f"{name} {number}" for name, number in result.versions.items())
    emit(f"optimum {result.action} in {result.folder}: {versions}")
