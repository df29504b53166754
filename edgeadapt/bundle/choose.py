"""Which of a run's artifacts go to which device, and whether they may."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeadapt.bundle.run_folder import Run, RunArtifact
from edgeadapt.devices import load_profile
from edgeadapt.errors import GateFailure, InputError


@dataclass(frozen=True)
class Chosen:
    """An artifact of the run, and the devices that it is for with the reason of each."""

    artifact: RunArtifact
    devices: dict[str, str]


def choose_variants(run: Run, devices: Sequence[str]) -> list[Chosen]:
    """For each device the artifact that the run exported for it, else the one it should take.

    Args:
        run: the finished run.
        devices: profiles, by name or path; none: every artifact, for the devices it was made for.

    Raises:
        InputError: a device is unknown, or the run has no artifact for it; says which it needs.
    """
    if not devices:
        return [Chosen(artifact, dict(artifact.devices)) for artifact in run.artifacts]
    found: dict[Path, Chosen] = {}
    for device in dict.fromkeys(devices):
        artifact, reason = _for_device(run, device)
        name = load_profile(device).name
        found.setdefault(artifact.path, Chosen(artifact, {})).devices[name] = reason
    order = [artifact.path for artifact in run.artifacts]
    return sorted(found.values(), key=lambda chosen: order.index(chosen.artifact.path))


def _for_device(run: Run, device: str) -> tuple[RunArtifact, str]:
    profile = load_profile(device)
    for artifact in run.artifacts:
        for known in (device, profile.name):
            if known in artifact.devices:
                return artifact, artifact.devices[known]
    format, quantization, reason = _planned(run, device)
    for artifact in run.artifacts:
        if (artifact.format, artifact.quantization) == (format, quantization):
            return artifact, reason
    has = ", ".join(map(str, run.artifacts))
    raise InputError(
        f"the run has nothing for {device}, which should take {format} {quantization}; it has "
        f"{has}. Add `- device: {device}` to the recipe's export and run it again"
    )


def _planned(run: Run, device: str) -> tuple[str, str, str]:
    """What `edgeadapt plan` would take for the run's model."""
    from edgeadapt.export import open_model
    from edgeadapt.planner import choose
    from edgeadapt.planner.sizes import facts_of

    model = open_model(str(run.trained or run.base.path), run.peft_adapter, any_base=True)
    choice = choose(load_profile(device), facts_of(model))
    return choice.format, choice.quantization, choice.reason


def check_gates(variants: Sequence[Chosen], *, force: bool) -> tuple[str, ...]:
    """What speaks against shipping these; with `force` it is only told.

    Raises:
        GateFailure: something does; names gate and figure.
    """
    found = tuple(line for chosen in variants for line in chosen.artifact.objections())
    if found and not force:
        lines = "\n".join(f"  {line}" for line in found)
        raise GateFailure(
            f"not good enough to ship:\n{lines}\nexport better ones, or say --force: the manifest "
            "and the model card will then tell of it",
            {"passed": False, "gates": [], "failed_gates": ["bundle"], "failures": list(found)},
        )
    return found
