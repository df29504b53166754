"""Benchmark artifacts on another machine, through whichever transport leads there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from edgeadapt.artifact import Artifact, open_artifact
from edgeadapt.bench.measurement import Measurement
from edgeadapt.console import log
from edgeadapt.errors import HostFailure, InputError
from edgeadapt.transports.base import NeededFile, Transport, open_transport
from edgeadapt.transports.place import needed_files


def bench_on(
    url: str,
    artifacts: Sequence[Path],
    options: Sequence[str] = (),
    *,
    adapter: Path | None = None,
) -> list[Measurement]:
    """Measure artifacts on another machine, with the edgeadapt that is installed there.

    Args:
        url: where, as `ssh://user@host:port/path/of/edgeadapt`.
        artifacts: files and folders here; copied unless their content is there already.
        options: of `edgeadapt bench`, as typed.
        adapter: one to activate, here.

    Returns:
        the measurements; paths in them are those given.

    Raises:
        InputError: an artifact cannot be opened, or the URL is malformed.
        HostFailure: the other machine is not to be reached, vanished, or failed.
    """
    transport = open_transport(url)
    opened = [open_artifact(path) for path in artifacts]
    places = [needed_files(path, str(number)) for number, path in enumerate(artifacts)]
    words = [place for place, _ in places]
    files = [file for _, needed in places for file in needed]
    if adapter is not None:
        place, more = needed_files(adapter, "adapter")
        files += more
        options = [*options, "--adapter", place]
    with transport:
        if "llama-bench" in transport.program.rpartition("/")[2]:
            raise InputError(f"{transport.name} has llama-bench, which is not read yet")
        sent = transport.place(files)
        total = sum(file.size for file in files)
        log.info("%s: copied %.1f of %.1f MB", transport.name, sent / 1e6, total / 1e6)
        output = transport.run(["bench", "--json", *options, "--", *words], files, timeout_s=None)
    return _measurements(transport, output, dict(zip(words, opened, strict=True)), files)


def _measurements(
    transport: Transport, output: bytes, artifacts: dict[str, Artifact], files: list[NeededFile]
) -> list[Measurement]:
    """What edgeadapt printed there, under the paths here; all of it about what was sent."""
    try:
        records: list[dict[str, Any]] = json.loads(output)
        measurements = [Measurement.model_validate(record) for record in records]
    except (ValueError, ValidationError) as error:
        raise HostFailure(
            f"what {transport.program} on {transport.name} printed is no measurement of this "
            f"version ({str(error).splitlines()[0]}); install the same edgeadapt on both sides"
        ) from error
    named = []
    for found in measurements:
        sent = artifacts.get(found.artifact.path)
        if sent is None or sent.sha256() != found.artifact.sha256:
            raise HostFailure(
                f"{transport.name} measured {found.artifact.path}, which is not what was sent"
            )
        here = found.artifact.model_copy(update={"path": str(sent.path)})
        named.append(found.model_copy(update={"artifact": here}))
    return named
