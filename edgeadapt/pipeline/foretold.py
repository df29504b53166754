"""What is predicted of a run's artifacts: on this machine, beside what is measured, and on the
devices that they are for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgeadapt.devices import DeviceProfile, load_profile
from edgeadapt.planner import ModelFacts
from edgeadapt.planner.foretell import foretell


def predictions(
    artifacts: Sequence[Mapping[str, Any]],
    measurements: Sequence[Mapping[str, Any]],
    model: ModelFacts,
    machine: DeviceProfile | None,
) -> list[dict[str, Any]]:
    """One prediction for each measurement, and for each device of an artifact.

    Args:
        artifacts: of `run.json`.
        measurements: of `run.json`; what they ran is what is predicted.
        model: the model in the artifacts.
        machine: where the measurements were made; None if it is unknown.

    Returns:
        What `foretell` tells, with `measured`: whether the same was measured here.
    """
    measured = [m for m in measurements if m["artifact"]["format"] != "hf"]
    found = [_here(m, model, machine) for m in measured] if machine is not None else []
    settings = measured[0]["settings"] if measured else None
    elsewhere = [] if settings is None else list(_elsewhere(artifacts, settings, model))
    return found + elsewhere


def _here(m: Mapping[str, Any], model: ModelFacts, machine: DeviceProfile) -> dict[str, Any]:
    artifact, runtime = m["artifact"], m["runtime"]
    told = foretell(
        machine, model, runtime=runtime["name"], format=artifact["format"],
        quantization=artifact["quantization"], size_bytes=artifact["size_bytes"],
        threads=runtime["threads_in_use"] or runtime["threads_requested"],
        **_sizes(m["settings"]),
    )  # fmt: skip
    return told | {"measured": True}


def _elsewhere(
    artifacts: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], model: ModelFacts
) -> Iterator[dict[str, Any]]:
    for artifact in artifacts:
        for device in artifact["devices"]:
            profile = load_profile(device)
            engines = [
                choice.name
                for choice in profile.runtimes
                if choice.format == artifact["format"] and choice.backend == "cpu"
            ]
            if not engines:  # it runs on the GPU there alone
                continue
            told = foretell(
                profile, model, runtime=engines[0], format=artifact["format"],
                quantization=artifact["quantization"], size_bytes=artifact["bytes"],
                **_sizes(settings),
            )  # fmt: skip
            yield told | {"measured": False}


def _sizes(settings: Mapping[str, Any]) -> dict[str, int]:
    return {name: settings[name] for name in ("prompt_tokens", "decode_tokens", "context")}
