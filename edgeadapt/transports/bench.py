"""Benchmark artifacts on another machine, through whichever transport leads there."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeadapt.artifact import Artifact, open_artifact
from edgeadapt.bench.llama_bench import Imported
from edgeadapt.bench.measurement import Failure, Measurement
from edgeadapt.console import log
from edgeadapt.errors import HostFailure
from edgeadapt.transports.base import NeededFile, Transport, open_transport
from edgeadapt.transports.llama_bench import llama_bench_arguments, read_there
from edgeadapt.transports.place import needed_files
from edgeadapt.transports.records import read_records


def bench_on(
    url: str,
    artifacts: Sequence[Path],
    typed: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
) -> Iterator[Measurement | Failure | Imported]:
    """Measure artifacts on another machine, with the edgeadapt or llama-bench that it has.

    When the other machine vanishes meanwhile, or this process is asked to end, each artifact's
    record says so.

    Args:
        url: where, as `ssh://user@host:port/path/of/edgeadapt`.
        artifacts: files and folders here; copied unless their content is there already.
        typed: options for `edgeadapt bench` there.
        options: the same as values, for llama-bench; `adapter` is a path here.

    Yields:
        records; paths in them are those given.

    Raises:
        InputError: an artifact cannot be opened, the URL is malformed, or llama-bench has no such
            option.
        HostFailure: the other machine is not to be reached, or has nothing to measure with.
    """
    options = options or {}
    transport = open_transport(url)
    opened = [open_artifact(path) for path in artifacts]
    places = [needed_files(path, str(number)) for number, path in enumerate(artifacts)]
    there = {place: artifact for (place, _), artifact in zip(places, opened, strict=True)}
    files = [file for _, needed in places for file in needed]
    adapter: list[str] = []
    if options.get("adapter") is not None:
        place, more = needed_files(options["adapter"], "adapter")
        files += more
        adapter = ["--adapter", place]
    with transport:
        native = "llama-bench" in transport.program.rpartition("/")[2]
        if native:
            arguments = llama_bench_arguments(there, options)
        else:
            arguments = ["bench", "--json", *typed, *adapter, "--", *there]
        copied = transport.place(files)
        total = sum(file.size for file in files)
        log.info("%s: copied %.1f of %.1f MB", transport.name, copied / 1e6, total / 1e6)
        limit = options.get("timeout_s", 1800.0) * len(there) if native else None
        yield from _run(transport, arguments, files, there, limit)


def _run(
    transport: Transport,
    arguments: Sequence[str],
    files: Sequence[NeededFile],
    there: Mapping[str, Artifact],
    timeout_s: float | None,
) -> Iterator[Measurement | Failure | Imported]:
    start = time.monotonic()

    def failures(outcome: Any, reason: str) -> Iterator[Failure]:
        for artifact in there.values():
            yield Failure(
                outcome=outcome,
                reason=reason,
                artifact=str(artifact.path),
                runtime=transport.program.rpartition("/")[2],
                threads=0,  # unknown: the other side decides
                seconds=time.monotonic() - start,
            )

    try:
        ended = transport.run(arguments, files, timeout_s=timeout_s)
    except HostFailure as error:
        yield from failures("timeout" if error.timed_out else "failed", str(error))
        return
    except (KeyboardInterrupt, SystemExit):
        yield from failures("killed", f"interrupted while {transport.name} measured")
        raise
    if arguments[0] == "bench":
        yield from read_records(transport, ended, there)
    else:
        yield from read_there(transport, ended, there)
