"""Run a model in a process of its own, and survive whatever happens to it.

A native library can die of a wrong instruction, run out of memory or hang; and memory can only be
measured honestly in a process that does nothing else. So every measurement is a job in a child:
`python -m edgeadapt.worker` reads one line of JSON (the job) from stdin and writes lines of JSON
to stdout: `{"progress": n}` any number of times, then `{"result": ...}` or `{"error": ...}`.

The child holds stdin open and ends itself when that closes, so that not even a SIGKILL of the
parent leaves it behind.
"""

from __future__ import annotations

import collections
import contextlib
import importlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import IO, Any

from edgeadapt import errors, worker_end
from edgeadapt.console import log, set_verbosity

Progress = Callable[[float], None]
"""Call with the number of units that were just finished."""

_JOBS = {
    "bench": "edgeadapt.bench.protocol:run",
    "train": "edgeadapt.training.apart:run_train",
    "sweep": "edgeadapt.training.sweep:run_sweep",
    "train-rank": "edgeadapt.training.processes:run_rank",
    "score": "edgeadapt.jobs:run_score",
    "sample": "edgeadapt.jobs:run_sample",
    "warm": "edgeadapt.warm.make:run_warm",
    "reference": "edgeadapt.fidelity.references:run_reference",
    "compare": "edgeadapt.fidelity.compare:run_compare",
    "parity-original": "edgeadapt.fidelity.parity_jobs:run_original",
    "parity-engine": "edgeadapt.fidelity.parity_jobs:run_engine",
    "golden-record": "edgeadapt.bundle.golden:run_record",
    "golden-replay": "edgeadapt.bundle.golden:run_replay",
}
"""Job kind -> the function that does it in the child: (payload, progress) -> result."""

_STDERR_LINES = 40


def run_job(
    kind: str,
    payload: dict[str, Any],
    *,
    timeout_s: float | None = None,
    memory_limit: int | None = None,
    on_start: Callable[[int], None] | None = None,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Do one job in a child process and return its result.

    Args:
        kind: one of `_JOBS`.
        payload: JSON-serializable arguments; `runtime`, where present, is named in messages.
        timeout_s: kill the child and everything it started after this many seconds.
        memory_limit: bytes of memory of its own that the child may ask the system for; mapped
            files do not count.
        on_start: called with the child's process id as soon as it runs.
        on_progress: called with each amount of finished units that the job reports.

    Raises:
        EdgeAdaptError: the job raised it, in the child.
        RuntimeFailure: the child died, timed out or failed unexpectedly; its `outcome` says how.
        UnsupportedError: a memory limit, on a system that has none for a process.
    """
    worker_end.check_supported(memory_limit)
    oom_kills = worker_end.oom_kills()
    process = _spawn()
    stderr = _StderrReader(process)
    timed_out = threading.Event()

    def give_up() -> None:
        timed_out.set()
        _signal_group(process)

    timer = threading.Timer(timeout_s, give_up) if timeout_s is not None else None
    try:
        if on_start is not None:
            on_start(process.pid)
        if timer is not None:
            timer.start()
        job = {"kind": kind, "payload": payload, "verbosity": _verbosity()}
        _send(process, job | {"memory_limit": memory_limit})
        answer = _receive(process, on_progress)
        if answer is None:
            _await_end(process)
    finally:
        if timer is not None:
            timer.cancel()
        _signal_group(process)
        process.wait()
        stderr.join()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # bytes for a dead child may still be buffered
                pipe.close()  # type: ignore[union-attr]
    if answer is None and timed_out.is_set():
        raise errors.RuntimeFailure(
            f"the {_who(kind, payload)} did not finish within {timeout_s:g} s and was stopped; "
            "raise --timeout, or ask for fewer tokens and repetitions",
            "timeout",
        )
    if answer is None:
        system_killed = worker_end.oom_kills() > oom_kills
        raise worker_end.obituary(
            _who(kind, payload), process.returncode, stderr.lines, system_killed
        )
    if "error" in answer:
        reraise(answer["error"], _who(kind, payload))
    result: dict[str, Any] = answer["result"]
    return result


def _spawn() -> subprocess.Popen[bytes]:
    """Start the child in a session of its own: a terminal's Ctrl-C reaches only the parent."""
    # -P keeps the current folder off sys.path: a user's own json.py must not be imported.
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "edgeadapt.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def _verbosity() -> int:
    return 1 if log.isEnabledFor(logging.DEBUG) else -1


def _send(process: subprocess.Popen[bytes], job: dict[str, Any]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it died already; `_receive` finds out how
        process.stdin.write(json.dumps(job).encode() + b"\n")
        process.stdin.flush()


def _receive(
    process: subprocess.Popen[bytes], on_progress: Progress | None
) -> dict[str, Any] | None:
    """The child's last word, or None if it ended without one."""
    assert process.stdout is not None
    for line in process.stdout:
        try:
            message: dict[str, Any] = json.loads(line)
        except ValueError:  # cut off in the middle of a line: it died
            return None
        if "progress" not in message:
            return message
        if on_progress is not None:
            on_progress(message["progress"])
    return None


def _await_end(process: subprocess.Popen[bytes]) -> None:
    """Wait until the child has ended, by itself, and leave its exit status to be collected.

    Collected, its id could be given to another process before its group is signalled.
    """
    if hasattr(os, "waitid"):
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    else:
        process.wait()


def _signal_group(process: subprocess.Popen[bytes]) -> None:
    """Kill the child and whatever it started, if anything is left of them."""
    if process.returncode is not None:
        return
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()


class _StderrReader:
    """Keeps the last lines of the child's stderr, and shows them all with --debug."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr is not None
        self.lines: collections.deque[str] = collections.deque(maxlen=_STDERR_LINES)
        self._thread = threading.Thread(target=self._read, args=(process.stderr,), daemon=True)
        self._thread.start()

    def _read(self, stream: IO[bytes]) -> None:
        with stream:
            for raw in stream:
                line = raw.decode("utf-8", "replace").rstrip()
                if line:
                    self.lines.append(line)
                    log.debug("%s", line)

    def join(self) -> None:
        self._thread.join(timeout=5)


def _who(kind: str, payload: dict[str, Any]) -> str:
    runtime = payload.get("runtime")
    return f"{runtime} {kind} process" if runtime else f"{kind} process"


def reraise(error: dict[str, str], who: str) -> None:
    """Raise an error that another process told by its `type` and `message`.

    Raises:
        EdgeAdaptError: the same, or RuntimeFailure for what is not one of ours.
    """
    if error["type"] == "MemoryError":
        raise worker_end.out_of_memory(who)
    if worker_end.speaks_of_memory(error["message"]):
        raise worker_end.out_of_memory(who, f" ({error['message']})")
    kind = getattr(errors, error["type"], None)
    if isinstance(kind, type) and issubclass(kind, errors.EdgeAdaptError):
        # Not through __init__: MissingExtraError builds its message from other arguments.
        raised = kind.__new__(kind)
        raised.args = (error["message"],)
        raise raised
    raise errors.RuntimeFailure(
        f"the {who} failed: {error['type']}: {error['message']}; see --debug"
    )


@contextlib.contextmanager
def _stdout_kept_for_results() -> Iterator[IO[str]]:
    """Move file descriptor 1 aside: whatever a library prints goes to stderr."""
    results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with results:
        yield results


def _end_with_parent() -> None:
    """Wait for the end of stdin in a thread: the parent holds the other end of the pipe."""

    def wait() -> None:
        os.read(0, 1)
        if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)  # with whatever this process started
        os._exit(3)

    threading.Thread(target=wait, daemon=True).start()


def main() -> int:
    """The child: one job in, one result out."""
    with _stdout_kept_for_results() as results:

        def say(message: dict[str, Any]) -> None:
            results.write(json.dumps(message) + "\n")
            results.flush()

        job = json.loads(_first_line())
        _end_with_parent()
        set_verbosity(job["verbosity"])
        try:
            worker_end.limit_memory(job["memory_limit"])
            module, _, function = _JOBS[job["kind"]].partition(":")
            work = getattr(importlib.import_module(module), function)
            say({"result": work(job["payload"], lambda amount: say({"progress": amount}))})
        except Exception as error:  # a process boundary: whatever it was, the parent must hear it
            if not isinstance(error, errors.EdgeAdaptError) or job["verbosity"] > 0:
                traceback.print_exc()
            say({"error": {"type": type(error).__name__, "message": str(error)}})
            return 1
    return 0


def _first_line() -> bytes:
    """The job, read past the buffered reader: the thread that waits for the end reads too."""
    parts = []
    while True:
        part = os.read(0, 1 << 16)
        parts.append(part)
        if not part or part.endswith(b"\n"):
            return b"".join(parts)


if __name__ == "__main__":
    sys.exit(main())
