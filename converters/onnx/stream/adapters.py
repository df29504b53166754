"""Adapters beside a graph: the inputs that take them, and the files that hold them.

The files are onnxruntime's (`AdapterFormat`, https://onnxruntime.ai/docs/genai/tutorials/finetune.html),
which onnxruntime-genai's `Adapters` and onnxruntime's run options load. The scale is folded into B.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeadapt.artifact import Artifact
from edgeadapt.converters.adapter_files import AdapterRequest
from edgeadapt.converters.onnx.stream.architecture import Decoder, Linear, describe
from edgeadapt.errors import CorruptFileError, InputError, UnsupportedError
from edgeadapt.extras import need
from edgeadapt.files import atomic_file
from edgeadapt.lora_slots import SUFFIX, LoraSlots, input_names, model_version
from edgeadapt.weights import Float32Array, LowRankUpdate, WeightSource

_REMEDY = "merge the adapter: --adapter-mode merged"
_ADAPTER_VERSION = 1


def adapted(decoder: Decoder, sources: Sequence[str]) -> list[Linear]:
    """The products of a decoder that a change of these tensors changes.

    Raises:
        UnsupportedError: one of the tensors is in no product.
    """
    wanted, found = set(sources), [x for x in decoder.linears if x.sources & set(sources)]
    if missing := wanted - {name for linear in found for name in linear.sources}:
        raise UnsupportedError(
            f"{min(missing)!r} is in no matrix product of the graph, so that no adapter can be "
            f"added to it; {_REMEDY}"
        )
    return found


def slots(decoder: Decoder, sources: Sequence[str], base_sha256: str) -> LoraSlots:
    """What a graph with inputs for these tensors' changes can take."""
    shapes = {linear.name: linear.weight.shape for linear in adapted(decoder, sources)}
    return LoraSlots(model_version(base_sha256), {n: (s[1], s[0]) for n, s in shapes.items()})


def check_adapter(base: WeightSource, updates: Sequence[LowRankUpdate]) -> None:
    """See that a graph of this base can take these updates.

    Raises:
        UnsupportedError: it cannot.
    """
    _adapted(describe(base), updates)


def write_adapter(request: AdapterRequest, out: Path) -> Artifact:
    """Write one adapter for the graphs of its base; see `AdapterWriter`.

    Raises:
        InputError: `out` exists or is not called `*.onnx_adapter`, or it is to be stored otherwise
            than in float32.
        UnsupportedError: the base or the adapter cannot be taken apart so.
        CorruptFileError: the adapter holds NaN or infinite values.
    """
    if out.suffix != SUFFIX:
        raise InputError(f"{out} is no name for an ONNX adapter; end it with {SUFFIX}")
    if request.quantization not in ("F32", "fp32"):
        raise InputError(
            f"an ONNX adapter cannot be stored as {request.quantization!r}: the graph's inputs are "
            "float32; leave --quant out"
        )
    parameters = adapter_parameters(describe(request.base), request.updates)
    with atomic_file(out) as partial:
        save(parameters, model_version(request.lineage["base"]["sha256"]), partial)
    return Artifact(out, "onnx", "F32", request.lineage | {"name": request.name})


def adapter_parameters(
    decoder: Decoder, updates: Sequence[LowRankUpdate]
) -> dict[str, Float32Array]:
    """A and B for each product that an adapter changes, by the names of the graph's inputs.

    Raises:
        UnsupportedError: it changes what no product holds.
        CorruptFileError: it holds NaN or infinite values.
    """
    parameters: dict[str, Float32Array] = {}
    linears = _adapted(decoder, updates)
    for update in updates:
        a, b = update.read()
        b = b * np.float32(update.scale)
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise CorruptFileError(f"the adapter holds NaN or infinite values for {update.name!r}")
        for linear in linears:
            if update.name not in linear.sources:
                continue
            (part,) = linear.weight.parts
            names = input_names(linear.name)
            parameters[names[0]] = np.ascontiguousarray(a.T)
            parameters[names[1]] = np.ascontiguousarray(b[part.start : part.stop].T)
    return parameters


def _adapted(decoder: Decoder, updates: Sequence[LowRankUpdate]) -> list[Linear]:
    for update in updates:
        if update.embedding:
            raise UnsupportedError(f"{update.name!r} is looked up, not multiplied by; {_REMEDY}")
    return adapted(decoder, [update.name for update in updates])


def save(parameters: dict[str, Float32Array], version: int, path: Path) -> None:
    """Write onnxruntime's adapter format.

    Args:
        parameters: by name.
        version: number of the base.
        path: replaced if it exists.
    """
    ort: Any = need("onnxruntime", "writing an ONNX adapter")
    adapter = ort.AdapterFormat()
    adapter.set_adapter_version(_ADAPTER_VERSION)
    adapter.set_model_version(version)
    adapter.set_parameters(
        {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in parameters.items()}
    )
    adapter.export_adapter(str(path))
