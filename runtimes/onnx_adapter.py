"""An `.onnx_adapter` file, checked against the graph that it is to be used with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeadapt.errors import AdapterError, CorruptFileError, InputError
from edgeadapt.extras import need
from edgeadapt.lora_slots import LoraSlots

_DTYPE = "tensor(float)"


def read_adapter(path: Path, folder: Path) -> dict[str, Any]:
    """The graph inputs that an adapter gives, as onnxruntime's values, by name.

    Args:
        path: the adapter file.
        folder: of the graph.

    Raises:
        InputError: there is no such file.
        CorruptFileError: it is not an adapter of onnxruntime's.
        AdapterError: it does not fit the graph.
    """
    slots = LoraSlots.read(folder)
    if not path.is_file():
        raise InputError(f"{path} is no file; expected an adapter that `edgeadapt export` made")
    ort: Any = need("onnxruntime", "reading an ONNX adapter")
    try:
        adapter = ort.AdapterFormat.read_adapter(str(path))
        parameters: dict[str, Any] = adapter.get_parameters()
        version = int(adapter.get_model_version())
    except (RuntimeError, ValueError, TypeError) as error:
        raise CorruptFileError(
            f"{path} is not an adapter that onnxruntime can read; export it again"
        ) from error
    slots.check(path, version, {name: tuple(v.shape()) for name, v in parameters.items()})
    for name, value in parameters.items():
        if value.data_type() != _DTYPE:
            raise AdapterError(
                f"{path} holds {name} as {value.data_type()}, the graph takes {_DTYPE}; "
                "export it again"
            )
    return parameters
