"""How far each tensor of a GGUF file is from the float weights that it was made from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeadapt.console import progress
from edgeadapt.converters.gguf.architectures import family_of
from edgeadapt.converters.gguf.ggml import dequantize_rows
from edgeadapt.errors import InputError
from edgeadapt.gguf_io import GgufFile, GgufTensor
from edgeadapt.weights import WeightSource

_LAYER = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True)
class TensorError:
    """What quantization changed of one tensor."""

    name: str
    """llama.cpp's."""
    layer: int | None
    """Number of its transformer block, if it is of one."""
    type: str
    """ggml's."""
    error: float
    """Sum of the squared differences."""
    energy: float
    """Sum of the squared weights."""


def weight_errors(paths: Sequence[Path], source: WeightSource) -> list[TensorError]:
    """Every matrix of a file, in the file's order, a chunk of rows at a time.

    Args:
        paths: the GGUF file, or its parts.
        source: the float model that it was made from.

    Raises:
        InputError: the file is of another model.
        CorruptFileError: the file cannot be read.
    """
    files = [GgufFile(path) for path in paths]
    stored = {name: (file, tensor) for file in files for name, tensor in file.tensors.items()}
    plans = [plan for plan in family_of(source.config).plan(source) if len(plan.shape) > 1]
    found = []
    with progress(f"comparing the weights of {paths[0].name}", len(plans), "tensors") as advance:
        for plan in plans:
            if plan.name not in stored or stored[plan.name][1].shape != plan.shape:
                raise InputError(
                    f"{paths[0]} has no tensor {plan.name} of shape {plan.shape}: it was made "
                    "from another model"
                )
            file, tensor = stored[plan.name]
            error = energy = 0.0
            for start, stop in plan.chunks():
                wanted = plan.read(source, start, stop)
                first = start * plan.rows // plan.source_rows
                data = file.stored_rows(plan.name, first, first + len(wanted))
                got = dequantize_rows(np.ascontiguousarray(data), tensor.type, plan.columns)
                error += float(np.square(got - wanted, dtype=np.float64).sum())
                energy += float(np.square(wanted, dtype=np.float64).sum())
            found.append(_entry(tensor, plan.name, error, energy))
            advance(1)
    return found


def _entry(tensor: GgufTensor, name: str, error: float, energy: float) -> TensorError:
    match = _LAYER.match(name)
    return TensorError(name, int(match[1]) if match else None, tensor.type.name, error, energy)
