"""Several artifacts, runtimes and thread counts, one after another, whatever becomes of each."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edgeadapt.bench.measurement import Failure, Measurement
from edgeadapt.bench.run import bench_artifact, check_gpu_layers, runtimes_of
from edgeadapt.console import log
from edgeadapt.errors import RuntimeFailure
from edgeadapt.jobs import available_threads


def bench_each(
    paths: Sequence[Path],
    records: list[Measurement | Failure],
    *,
    runtime: str | None = None,
    threads: Sequence[int] = (),
    **options: Any,
) -> Iterator[Measurement | Failure]:
    """`bench_artifact` for each artifact, runtime and number of threads.

    All of them are checked before the first runs; one that fails then is a record like another.

    When this process is asked to end, by Ctrl-C or a SIGTERM that raises SystemExit, the run that
    it breaks off is recorded as killed before the exception goes on.

    Args:
        paths: the artifacts.
        records: each record is appended here before it is yielded.
        runtime: a name, `all` for each installed one that loads the artifact, or None.
        threads: numbers to run with; all physical cores when empty.
        options: as of `bench_artifact`.

    Raises:
        EdgeAdaptError: as `bench_artifact`, but for what becomes a record.
    """
    runs = [
        (path, name, count)
        for path in paths
        for name in runtimes_of(
            path, runtime, options.get("adapter"), keeping=options.get("warm") is not None
        )
        for count in threads or (available_threads(),)
    ]
    for _, name, _ in runs:
        check_gpu_layers(name, options.get("gpu_layers"))
    for path, name, count in runs:
        start = time.monotonic()
        try:
            record: Measurement | Failure = bench_artifact(
                path, runtime=name, threads=count, **options
            )
        except RuntimeFailure as error:
            if len(runs) > 1:
                log.warning("%s", error)
            record = _failure(path, name, count, start, error.outcome, str(error))
        except (KeyboardInterrupt, SystemExit):
            reason = f"the bench of {path.name} on {name} was interrupted before it was done"
            records.append(_failure(path, name, count, start, "killed", reason))
            raise
        records.append(record)
        yield record


def _failure(
    path: Path, runtime: str, threads: int, start: float, outcome: Any, reason: str
) -> Failure:
    return Failure(
        outcome=outcome,
        reason=reason,
        artifact=str(path),
        runtime=runtime,
        threads=threads,
        seconds=time.monotonic() - start,
    )


def thread_sweep(most: int) -> list[int]:
    """1, 2, 4, ... and `most` itself."""
    return sorted({most, *(1 << power for power in range(most.bit_length()) if 1 << power < most)})
