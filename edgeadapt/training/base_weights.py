"""Whether a GGUF base is dequantized once, or stays packed while something is trained on it."""

from __future__ import annotations

from pathlib import Path

from edgeadapt.base_model import gguf_behind
from edgeadapt.console import log
from edgeadapt.errors import InputError
from edgeadapt.extras import need
from edgeadapt.memory import available_memory
from edgeadapt.safetensors_io import SafetensorsSource
from edgeadapt.training.methods import METHODS
from edgeadapt.training.settings import BaseWeights, TrainSettings
from edgeadapt.weights import parameter_count

_ROOM = 0.75
"""Share of the free memory that dequantized weights may take; the rest is for activations."""


def packable(base: Path, spec: str, settings: TrainSettings) -> Path | None:
    """The GGUF file whose weights may stay packed; None where they must not.

    Args:
        base: the base's folder.
        spec: what the user calls it.
        settings: of the training.

    Raises:
        InputError: they are to be packed, and cannot be.
    """
    method = METHODS[settings.method]
    gguf = gguf_behind(base, spec)
    cuda = need("torch", "training").cuda.is_available()
    if method.multiplies_only and gguf is not None and not cuda:
        return gguf
    if settings.base_weights != "packed":
        return None
    if not method.multiplies_only:
        able = ", ".join(name for name, method in METHODS.items() if method.multiplies_only)
        raise InputError(
            f"base_weights=packed is for methods that only multiply with the base's weights "
            f"({able}), and {settings.method} does more"
        )
    if gguf is None:
        raise InputError(
            f"base_weights=packed is for a GGUF base, and {spec} is none; --method qlora holds "
            "other bases in 4 bits"
        )
    raise InputError(
        "base_weights=packed is for training on CPUs; on a GPU, --method qlora holds a base in "
        "4 bits"
    )


def choose_base_weights(wanted: BaseWeights, base: Path, processes: int) -> BaseWeights:
    """What `auto` comes to, by the memory that is free.

    Args:
        wanted: the setting.
        base: the base's folder.
        processes: how many on this machine hold the weights, each its own.
    """
    if wanted != "auto":
        return wanted
    size = 4 * parameter_count(SafetensorsSource(base)) * processes
    free = available_memory()
    if size <= _ROOM * free:
        return "dequantized"
    log.info(
        "the base stays packed and is dequantized in each pass: its weights would take %.0f MiB "
        "in float32, and %.0f MiB are free", size / 2**20, free / 2**20,
    )  # fmt: skip
    return "packed"
