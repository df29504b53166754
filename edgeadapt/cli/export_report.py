"""What `edgeadapt export` prints, for people and as JSON."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from edgeadapt.console import emit, emit_json

if TYPE_CHECKING:
    from edgeadapt.allocation.allocation import Allocation
    from edgeadapt.artifact import Artifact
    from edgeadapt.converters.base import ExportPlan
    from edgeadapt.fidelity.parity import ParityReport
    from edgeadapt.planner.warm import FirstToken
    from edgeadapt.verified import Verified
    from edgeadapt.warm.make import Warmed


def report_plan(plan: ExportPlan, out: Path, as_json: bool, allocation: Allocation | None) -> None:
    """Print what an export would take; nothing was written."""
    from edgeadapt.files import free_bytes

    free = free_bytes(out)
    if as_json:
        emit_json(
            {
                "format": plan.format,
                "quantization": allocation.options().label if allocation else plan.quantization,
                "allocation": allocation.document() if allocation else None,
                "exact": plan.exact,
                "files": plan.files,
                "output_bytes": plan.output,
                "memory_bytes": plan.memory,
                "disk_bytes": plan.disk,
                "disk_free_bytes": free,
                "fits": plan.disk <= free,
            }
        )
        return
    if allocation is not None:
        emit(allocation.table())
    about = "" if plan.exact else "about "
    for name, size in plan.files.items():
        emit(f"{name}: {about}{size:,} bytes ({size / 2**20:.1f} MiB)")
    emit(f"peak memory: about {plan.memory / 2**20:,.0f} MiB")
    room = "enough" if plan.disk <= free else "NOT enough"
    emit(f"disk needed: {about}{plan.disk / 2**20:,.1f} MiB, {free / 2**20:,.0f} MiB free: {room}")


def report(
    artifact: Artifact,
    reason: str | None,
    as_json: bool,
    allocation: Allocation | None = None,
    parity: ParityReport | None = None,
    verified: Verified | None = None,
    warm: Warmed | None = None,
    foretold: FirstToken | None = None,
) -> None:
    """Print what was exported.

    Args:
        artifact: as it lies there.
        reason: why the device's profile chose this format and quantization.
        as_json: print one JSON document.
        allocation: the types that were chosen for a size.
        parity: what the check of its text found.
        verified: what was measured of it, and of those before it.
        warm: the warm prompt that was written beside it.
        foretold: what that should save on the device.
    """
    if as_json:
        emit_json(
            {
                "path": str(artifact.path),
                "format": artifact.format,
                "quantization": artifact.quantization,
                "bytes": artifact.size_bytes,
                "reason": reason,
                "allocation": allocation.document() if allocation else None,
                "lineage": artifact.lineage,
                "parity": parity and parity.record(),
                "verification": verified and verified.record(),
                "warm_prompt": warm
                and warm.record() | {"predicted": foretold and foretold.record()},
            }
        )
        return
    if reason:
        emit(reason)
    if allocation is not None:
        emit(allocation.table())
    if verified is not None:
        emit(str(verified.attempts[-1]))  # those before it were told when they missed
    size = artifact.size_bytes / 2**20
    emit(f"{artifact.path}: {artifact.format} {artifact.quantization}, {size:.1f} MiB")
    if parity is not None and parity.checked:
        runtimes = ", ".join(parity.mismatches)
        emit(f"parity: {parity.cases} texts give the original's tokens on {runtimes}")
    if warm is not None:
        from edgeadapt.cli.warm_ import told

        for line in told(warm):
            emit(line)
    if foretold is not None:
        emit(str(foretold))
    if artifact.lineage.get("mode") != "separate":
        words = ["edgeadapt", "chat", str(artifact.path)]
        if warm is not None:
            words += ["--warm", str(warm.path)]
        emit(f"try it: {shlex.join(words)}")
