"""Benchmark artifacts on another machine, through whichever transport leads there."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeadapt.artifact import Artifact, open_artifact
from edgeadapt.bench.llama_bench import Imported
from edgeadapt.bench.measurement import Failure, Measurement
from edgeadapt.console import log
from edgeadapt.errors import HostFailure, RuntimeFailure
from edgeadapt.transports.base import Ended, NeededFile, Transport, open_transport
from edgeadapt.transports.llama_bench import llama_bench_arguments, read_there
from edgeadapt.transports.place import needed_files
from edgeadapt.transports.records import read_records


@dataclass(frozen=True)
class Means:
    """What to measure with on the other side, and on which of its cores."""

    llama_bench: Path | None = None
    """A program here that is built for the other side; None: what is installed there."""
    cores: tuple[int, ...] = ()
    """Empty: what the system there chooses, or `fast_cores`."""
    fast_cores: int = 0
    """How many of the fastest cores llama-bench runs on, where there are slower ones; 0: all."""


def bench_on(
    url: str,
    artifacts: Sequence[Path],
    typed: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    means: Means | None = None,
) -> Iterator[Measurement | Failure | Imported]:
    """Measure artifacts on another machine, with the edgeadapt or llama-bench that it has.

    When the other machine vanishes meanwhile, or this process is asked to end, each artifact's
    record says so.

    Args:
        url: where, as `ssh://user@host:port/path/of/edgeadapt`.
        artifacts: files and folders here; copied unless their content is there already.
        typed: options for `edgeadapt bench` there.
        options: the same as values, for llama-bench; `adapter` is a path here.
        means: what to measure with there; what is installed, by default.

    Yields:
        records; paths in them are those given.

    Raises:
        InputError: an artifact cannot be opened, the URL is malformed, or llama-bench has no such
            option.
        HostFailure: the other machine is not to be reached, or has nothing to measure with.
    """
    options, means = options or {}, means or Means()
    transport = open_transport(url)
    files = transport.bring(means.llama_bench) if means.llama_bench else []
    opened = [open_artifact(path) for path in artifacts]
    places = [needed_files(path, str(number)) for number, path in enumerate(artifacts)]
    there = {place: artifact for (place, _), artifact in zip(places, opened, strict=True)}
    files += [file for _, needed in places for file in needed]
    adapter: list[str] = []
    if options.get("adapter") is not None:
        place, more = needed_files(options["adapter"], "adapter")
        files += more
        adapter = ["--adapter", place]
    with transport:
        runs = [(["bench", "--json", *typed, *adapter, "--", *there], there)]
        limit = None
        transport.cores = means.cores
        if means.llama_bench or "llama-bench" in transport.program.rpartition("/")[2]:
            each = [{place: artifact} for place, artifact in there.items()]
            runs = [(llama_bench_arguments(one, options), one) for one in each]
            limit = options.get("timeout_s", 1800.0)
            transport.gauges_memory = True
            transport.cores = means.cores or transport.fast_cores(means.fast_cores)
        placed = yield from _place(transport, files, there)
        if placed:
            yield from _run(transport, runs, files, limit)


def _place(
    transport: Transport, files: Sequence[NeededFile], there: Mapping[str, Artifact]
) -> Generator[Failure, None, bool]:
    """Copy what is missing; false after failures of all artifacts."""
    start = time.monotonic()
    try:
        copied = transport.place(files)
    except HostFailure as error:
        yield from _failures(transport, there, "failed", str(error), start)
        return False
    except (KeyboardInterrupt, SystemExit):
        reason = f"interrupted while files were copied to {transport.name}"
        yield from _failures(transport, there, "killed", reason, start)
        raise
    total = sum(file.size for file in files)
    log.info("%s: copied %.1f of %.1f MB", transport.name, copied / 1e6, total / 1e6)
    return True


def _run(
    transport: Transport,
    runs: Sequence[tuple[Sequence[str], Mapping[str, Artifact]]],
    files: Sequence[NeededFile],
    timeout_s: float | None,
) -> Iterator[Measurement | Failure | Imported]:
    """One run after the other; what vanished is not asked again."""
    lost: HostFailure | None = None
    for arguments, there in runs:
        start = time.monotonic()
        try:
            if lost is not None:
                raise lost
            ended = transport.run(arguments, files, timeout_s=timeout_s)
        except HostFailure as error:
            lost = None if error.timed_out else error
            outcome = "timeout" if error.timed_out else "failed"
            yield from _failures(transport, there, outcome, str(error), start)
        except (KeyboardInterrupt, SystemExit):
            reason = f"interrupted while {transport.name} measured"
            yield from _failures(transport, there, "killed", reason, start)
            raise
        else:
            yield from _records(transport, arguments, ended, there, start)


def _records(
    transport: Transport,
    arguments: Sequence[str],
    ended: Ended,
    there: Mapping[str, Artifact],
    start: float,
) -> Iterator[Measurement | Failure | Imported]:
    if arguments[0] == "bench":
        yield from read_records(transport, ended, there)
        return
    try:
        yield from read_there(transport, ended, there)
    except RuntimeFailure as error:
        yield from _failures(transport, there, error.outcome, str(error), start)


def _failures(
    transport: Transport, there: Mapping[str, Artifact], outcome: Any, reason: str, start: float
) -> Iterator[Failure]:
    for artifact in there.values():
        yield Failure(
            outcome=outcome,
            reason=reason,
            artifact=str(artifact.path),
            runtime=transport.program.rpartition("/")[2],
            threads=0,  # unknown: the other side decides
            seconds=time.monotonic() - start,
        )
