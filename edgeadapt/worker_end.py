"""How a child process ended, in words; and a limit to the memory it may ask for."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from pathlib import Path

from edgeadapt.errors import RuntimeFailure, UnsupportedError

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_ENDING_SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")
"""Sent by somebody, where others are a crash of the process's own."""

_MEMORY_WORDS = re.compile(
    r"out of memory|bad_alloc|bad allocation|MemoryError|cannot allocate memory"
    r"|(failed|unable|attempted) to allocate|insufficient memory|can't allocate memory"
    r"|not enough memory",
    re.IGNORECASE,
)
"""How C++, numpy, ggml, ONNX Runtime and torch say that an allocation failed."""


def speaks_of_memory(text: str) -> bool:
    """Whether an error message is about memory that could not be had."""
    return _MEMORY_WORDS.search(text) is not None


def check_supported(limit: int | None) -> None:
    """See that a limit can be set here; None always can.

    Raises:
        UnsupportedError: it cannot.
    """
    # Darwin has the constant too, but counts no mappings against it.
    if limit is not None and not Path("/proc/self/smaps").exists():
        raise UnsupportedError(
            "a memory limit needs Linux's RLIMIT_DATA, which this system has not; leave it away"
        )


def limit_memory(limit: int | None) -> None:
    """Let this process ask for `limit` bytes of memory of its own and not more.

    Counted is what it may write without changing a file, touched or not: heap, KV cache, compute
    buffers, thread stacks (RLIMIT_DATA of setrlimit(2)). Read-only mapped weights are not: the
    system can drop them.
    """
    if limit is not None and resource is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def oom_kills() -> int:
    """How many processes the kernel has killed for memory since it started; 0 if it does not tell.

    `oom_kill` of /proc/vmstat: that of the whole system and of every control group.
    """
    try:
        text = Path("/proc/vmstat").read_text()
    except OSError:
        return 0
    found = re.search(r"^oom_kill (\d+)$", text, re.MULTILINE)
    return int(found[1]) if found else 0


def obituary(
    who: str, returncode: int, stderr: Sequence[str], system_killed: bool
) -> RuntimeFailure:
    """One sentence on how a child ended that gave no answer, and what to try.

    Args:
        who: the child.
        returncode: as `Popen` gives it.
        stderr: its last lines.
        system_killed: the kernel has killed some process for memory meanwhile.
    """
    last = f" (its last words: {stderr[-1]})" if stderr else ""
    if any(map(speaks_of_memory, stderr)):
        return out_of_memory(who, last)
    if returncode >= 0:
        return RuntimeFailure(
            f"the {who} ended with exit code {returncode} and no result{last}; see --debug"
        )
    name = signal.Signals(-returncode).name
    if name == "SIGKILL" and system_killed:
        return out_of_memory(who, ": the system killed it to free memory")
    if name == "SIGKILL":
        advice = (
            "most often that is the system running out of memory: try a smaller quantization "
            "or --context, or close other programs"
        )
    elif name in _ENDING_SIGNALS:
        advice = "someone asked it to end; run it again"
    elif who.startswith("llama-cpp"):
        advice = (
            "if this happens with every model, the library does not fit this CPU; "
            "type: edgeadapt setup llama-cpp"
        )
    else:
        advice = "reinstall that runtime for this CPU, or choose another --runtime"
    return RuntimeFailure(
        f"the {who} was ended by {name}{last}; {advice}",
        "killed" if name in _ENDING_SIGNALS else "failed",
    )


def out_of_memory(who: str, why: str = "") -> RuntimeFailure:
    """The error of a child that had too little memory."""
    return RuntimeFailure(
        f"the {who} ran out of memory{why}; try a smaller quantization or --context",
        "out_of_memory",
    )
