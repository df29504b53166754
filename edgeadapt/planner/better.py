"""What to try when a quantization was not good enough."""

from __future__ import annotations

from collections.abc import Sequence

from edgeadapt.devices import DeviceProfile
from edgeadapt.planner.candidates import default_budget
from edgeadapt.planner.model import BITS_PER_WEIGHT, ModelFacts
from edgeadapt.prediction.memory import memory_needed


def next_better(
    format: str,
    quantization: str,
    model: ModelFacts,
    *,
    size_bytes: int,
    profiles: Sequence[DeviceProfile] = (),
) -> str | None:
    """The smallest quantization with more bits that still fits every device, if there is one.

    Args:
        format: of the artifact.
        quantization: that was not good enough.
        model: it is of.
        size_bytes: its file, which tells the bits of a quantization that the table lacks.
        profiles: the devices.
    """
    bits = BITS_PER_WEIGHT.get((format, quantization), 8 * size_bytes / model.parameters)
    widths = (
        (width, name)
        for (kind, name), width in BITS_PER_WEIGHT.items()
        if kind == format and name != "int8-dynamic"  # its activations lose more than bits tell
    )
    better = sorted((pair for pair in widths if pair[0] > bits), key=lambda pair: pair[0])
    for _, name in better:
        if all(_fits(profile, model, format, name) for profile in profiles):
            return name
    return None


def _fits(profile: DeviceProfile, model: ModelFacts, format: str, quantization: str) -> bool:
    cache = int(profile.context.value) * model.kv_bytes_per_token
    need = memory_needed(model.size(format, quantization)[0], cache, format)
    return need.gib <= default_budget(profile).memory_gib
