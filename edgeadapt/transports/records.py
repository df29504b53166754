"""What `edgeadapt bench --json` printed on another machine, as records of this one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from edgeadapt.artifact import Artifact
from edgeadapt.bench.measurement import Failure, Measurement
from edgeadapt.errors import HostFailure
from edgeadapt.transports.base import Ended, Transport


def read_records(
    transport: Transport, ended: Ended, there: Mapping[str, Artifact]
) -> list[Measurement | Failure]:
    """Records under the paths here; all of them about what was sent.

    Args:
        transport: where they come from, for messages.
        ended: how edgeadapt ended there; with exit code 2 it may have printed what failed.
        there: path there -> artifact here.

    Raises:
        HostFailure: it printed no records, or records of another version or artifact.
    """
    if ended.code and not ended.stdout.strip():
        said = ended.last_words.removeprefix("Error: ")
        raise HostFailure(f"on {transport.name}: {said} (exit code {ended.code})")
    try:
        values: list[dict[str, Any]] = json.loads(ended.stdout)
        found = [_record(value) for value in values]
    except (ValueError, TypeError, AttributeError) as error:
        raise HostFailure(
            f"what {transport.program} on {transport.name} printed is no measurement of this "
            f"version ({str(error).splitlines()[0]}); install the same edgeadapt on both sides"
        ) from error
    return [_here(transport, record, there) for record in found]


def _record(value: dict[str, Any]) -> Measurement | Failure:
    try:
        return Measurement.model_validate(value)
    except ValidationError:
        if value.get("outcome", "ok") == "ok":
            raise
        return Failure.model_validate(value)


def _here(
    transport: Transport, record: Measurement | Failure, there: Mapping[str, Artifact]
) -> Measurement | Failure:
    path = record.artifact if isinstance(record, Failure) else record.artifact.path
    sent = there.get(path)
    wrong = isinstance(record, Measurement) and sent and sent.sha256() != record.artifact.sha256
    if sent is None or wrong:
        raise HostFailure(f"{transport.name} measured {path}, which is not what was sent")
    if isinstance(record, Failure):
        return record.model_copy(update={"artifact": str(sent.path)})
    here = record.artifact.model_copy(update={"path": str(sent.path)})
    return record.model_copy(update={"artifact": here})
