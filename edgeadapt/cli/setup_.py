"""`edgeadapt setup`: native libraries for this CPU."""

from __future__ import annotations

from dataclasses import asdict

import click

from edgeadapt.cli.common import standard
from edgeadapt.console import emit, emit_json


@click.group("setup")
def command() -> None:
    """Build and check native libraries for this CPU."""


@command.command("llama-cpp")
@click.option("--rebuild", is_flag=True, help="Build again, whatever is installed or cached.")
@standard
def llama_cpp(rebuild: bool, as_json: bool) -> None:
    """Install llama.cpp (llama-cpp-python), built for this CPU and tested on it.

    The instruction sets are taken from what the system lists for the CPU; AMX is left out, since
    virtual machines name it and fault on it. A wheel that was built before with the same list is
    taken from the cache. The end is a decode of a small quantized model in a child process; if
    that dies, llama.cpp is built again with AVX2 only.

    Needs a C++ compiler; takes minutes the first time, seconds after that, and nothing is done
    when all is well. pip's own settings (PIP_INDEX_URL, PIP_CONSTRAINT, ...) and CMAKE_ARGS apply.
    """
    from edgeadapt.setup.llama_cpp import setup_llama_cpp

    result = setup_llama_cpp(rebuild=rebuild)
    if as_json:
        emit_json(asdict(result))
        return
    what = {
        "kept": "is installed and works, nothing to do",
        "installed": "installed from the cache",
        "built": "built and installed",
    }[result.action]
    emit(f"llama-cpp-python {result.version} {what}: {result.features}; {result.self_test}")
