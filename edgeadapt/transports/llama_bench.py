"""llama-bench on another machine: what to ask it for, and what it answered."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeadapt.artifact import Artifact
from edgeadapt.bench.llama_bench import Imported, read_llama_bench
from edgeadapt.errors import HostFailure, InputError
from edgeadapt.transports.base import Ended, Transport
from edgeadapt.transports.scripts import KILLED
from edgeadapt.worker_end import obituary

_UNKNOWN = {
    "cold": "--cold", "context": "--context", "provider": "--provider", "adapter": "--adapter",
    "sustain_s": "--sustain", "memory_limit": "--memory-limit",
}  # fmt: skip
"""What llama-bench has no option for."""


def llama_bench_arguments(there: Mapping[str, Artifact], options: Mapping[str, Any]) -> list[str]:
    """Options of llama-bench that say the same as those of `edgeadapt bench`.

    Args:
        there: path there -> artifact here.
        options: arguments of `bench_each`.

    Raises:
        InputError: an artifact is not a GGUF file, or an option has no counterpart.
    """
    for path, artifact in there.items():
        if artifact.format != "gguf":
            raise InputError(
                f"llama-bench does not load {artifact.path} ({artifact.format}); install edgeadapt "
                "there, or export to GGUF"
            )
        if "," in path:
            raise InputError(f"llama-bench would split {artifact.path} at the comma; rename it")
    given = [flag for name, flag in _UNKNOWN.items() if options.get(name)]
    if options.get("runtime") not in (None, "llama-cpp"):
        given.append("--runtime")
    if given:
        raise InputError(
            f"llama-bench has nothing like {', '.join(given)}; leave it out, or install edgeadapt"
        )
    words = ["-o", "json"]
    for name, flag in (
        ("prompt_tokens", "-p"),
        ("decode_tokens", "-n"),
        ("repetitions", "-r"),
        ("gpu_layers", "-ngl"),
    ):
        if options.get(name) is not None:
            words += [flag, str(options[name])]
    for name, flag in (("threads", "-t"), ("depths", "-d")):
        if options.get(name):
            words += [flag, ",".join(map(str, tuple(options[name])))]
    return [*words, *(word for path in there for word in ("-m", path))]


def read_there(transport: Transport, ended: Ended, there: Mapping[str, Artifact]) -> list[Imported]:
    """What it printed, under the paths here.

    Raises:
        RuntimeFailure: it failed.
        HostFailure: it printed something else.
    """
    if ended.code:
        signalled = 128 < ended.code < 160  # a shell's way to tell the signal
        code = 128 - ended.code if signalled else ended.code
        raise obituary(
            f"llama-bench on {transport.name}", code, ended.stderr, KILLED in ended.stderr
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"llama-bench on {transport.name.replace('/', '_')}.json"
        path.write_bytes(ended.stdout)
        found = read_llama_bench(path)
    if unknown := {record.model for record in found} - set(there):
        raise HostFailure(f"{transport.name} measured {unknown}, which is not what was sent")
    seen = {"cores": transport.cores, "peak_rss": ended.peak_rss}
    return [r.model_copy(update={"model": str(there[r.model].path), **seen}) for r in found]
