"""Which engine goes by which name; third parties add theirs as `edgeadapt.runtimes` entries."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import cast

from edgeadapt.errors import InputError, MissingExtraError
from edgeadapt.runtimes.base import Runtime

GROUP = "edgeadapt.runtimes"

_BUILT_IN = {
    "llama-cpp": "edgeadapt.runtimes.llama_cpp:LlamaCppRuntime",
    "ort-genai": "edgeadapt.runtimes.ort_genai:OrtGenaiRuntime",
    "onnxruntime": "edgeadapt.runtimes.onnxruntime:OnnxruntimeRuntime",
    "torch": "edgeadapt.runtimes.torch:TorchRuntime",
}

_BY_FORMAT = {
    "gguf": ("llama-cpp",),
    "onnx": ("ort-genai", "onnxruntime"),
    "hf": ("torch",),
}


def runtime_names() -> tuple[str, ...]:
    """Every known engine, built-in ones first."""
    return (*_BUILT_IN, *(e.name for e in entry_points(group=GROUP) if e.name not in _BUILT_IN))


def get_runtime(name: str) -> Runtime:
    """The engine called `name`, its module imported but no model loaded.

    Raises:
        InputError: there is none.
    """
    if name in _BUILT_IN:
        module, _, attribute = _BUILT_IN[name].partition(":")
        return cast(Runtime, getattr(importlib.import_module(module), attribute)())
    for entry in entry_points(group=GROUP):
        if entry.name == name:
            return cast(Runtime, entry.load()())
    raise InputError(f"there is no runtime {name!r}; choose one of {', '.join(runtime_names())}")


def runtimes_for(format: str) -> tuple[str, ...]:
    """Names of the engines that load an artifact format, the preferred one first."""
    third = tuple(
        e.name for e in entry_points(group=GROUP) if format in cast(Runtime, e.load()).formats
    )
    return _BY_FORMAT.get(format, ()) + third


def installed_runtimes(format: str) -> tuple[str, ...]:
    """Names of the engines that load an artifact format and are installed here, preferred first.

    Raises:
        InputError: no engine is known for the format.
        MissingExtraError: engines are known, and none is installed.
    """
    names = runtimes_for(format)
    if not names:
        raise InputError(f"no runtime loads the format {format!r}; export to gguf or onnx")
    installed, missing = [], []
    for name in names:
        try:
            get_runtime(name).version()
        except MissingExtraError as error:
            missing.append(error)
        else:
            installed.append(name)
    if not installed:
        raise missing[0]
    return tuple(installed)


def preferred_runtime(format: str) -> str:
    """The first of `installed_runtimes`; raises as that does."""
    return installed_runtimes(format)[0]
