"""What the gates say of artifacts, in words that tell what to do next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeadapt.artifact import Artifact
from edgeadapt.console import log
from edgeadapt.devices import load_profile
from edgeadapt.errors import GateFailure
from edgeadapt.fidelity.gates import Gates, Verdict, judge, verdict_record
from edgeadapt.planner import model_facts, next_better
from edgeadapt.weights import WeightSource


def judged_record(
    artifact: Artifact,
    figures: dict[str, Any],
    gates: Gates,
    source: WeightSource,
    devices: Sequence[str] = (),
    others: Sequence[Verdict] = (),
) -> dict[str, Any]:
    """An artifact's figures with the verdict of each gate and, if one failed, what to try.

    Args:
        artifact: that was measured.
        figures: what `edgeadapt.fidelity.evaluate.evaluate` returned.
        gates: the limits.
        source: the model's tensors, for its size.
        devices: profiles that the artifact has to fit.
        others: verdicts that do not come from these figures, such as `parity`'s.
    """
    verdicts = judge(gates, figures, others)
    for verdict in verdicts:
        if verdict.passed and verdict.note:  # it was not judged
            log.warning("%s: %s", artifact.path.name, verdict)
    record = figures | verdict_record(verdicts)
    failed = [str(verdict) for verdict in verdicts if not verdict.passed]
    better = None
    if failed:
        better = next_better(
            artifact.format,
            artifact.quantization,
            model_facts(source),
            size_bytes=artifact.size_bytes,
            profiles=[load_profile(name) for name in devices],
        )
    return record | {"failures": failed, "next_better": better}


def failures(artifacts: Sequence[Mapping[str, Any]]) -> list[str]:
    """One sentence for each gate that an artifact failed on a runtime.

    Args:
        artifacts: each with `path`, `devices` and, by runtime, what `judged_record` returned.
    """
    return [
        f"{Path(artifact['path']).name} on {runtime} failed {failure}; "
        + _advice(judged["next_better"], artifact["devices"])
        for artifact in artifacts
        for runtime, judged in artifact["fidelity"].items()
        for failure in judged["failures"]
    ]


def raise_failures(found: Sequence[str]) -> None:
    """End with exit code 1 if a gate failed.

    Raises:
        GateFailure: one did.
    """
    if found:
        raise GateFailure("\n".join(["not good enough:", *(f"  {line}" for line in found)]))


def _advice(better: str | None, devices: Sequence[str]) -> str:
    fit = " and ".join(devices)
    if better is None:
        return "there is no better quantization" + (f" that fits {fit}" if fit else "")
    return f"the next better quantization is {better}" + (f", which fits {fit}" if fit else "")
