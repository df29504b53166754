"""Which engine goes by which name; third parties add theirs as `edgeadapt.runtimes` entries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from edgeadapt.errors import InputError, MissingExtraError, UnsupportedError
from edgeadapt.plugins import Registry
from edgeadapt.runtimes.base import Runtime

_RUNTIMES = Registry(
    "runtime",
    "edgeadapt.runtimes",
    {
        "llama-cpp": "edgeadapt.runtimes.llama_cpp:LlamaCppRuntime",
        "ort-genai": "edgeadapt.runtimes.ort_genai:OrtGenaiRuntime",
        "onnxruntime": "edgeadapt.runtimes.onnxruntime:OnnxruntimeRuntime",
        "torch": "edgeadapt.runtimes.torch:TorchRuntime",
    },
)

_BY_FORMAT = {
    "gguf": ("llama-cpp",),
    "onnx": ("ort-genai", "onnxruntime"),
    "hf": ("torch",),
}


def runtime_names() -> tuple[str, ...]:
    """Every known engine, built-in ones first."""
    return _RUNTIMES.names()


def get_runtime(name: str) -> Runtime:
    """The engine called `name`, its module imported but no model loaded.

    Raises:
        InputError: there is none.
    """
    return cast(Runtime, _RUNTIMES.load(name)())


def runtimes_for(format: str) -> tuple[str, ...]:
    """Names of the engines that load an artifact format, the preferred one first."""
    third = tuple(name for name in _RUNTIMES.added() if format in get_runtime(name).formats)
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


def keeping_state(names: Sequence[str]) -> tuple[str, ...]:
    """Those of some engines whose sessions can begin from a saved KV cache.

    Raises:
        UnsupportedError: none of them can.
    """
    found = tuple(name for name in names if get_runtime(name).keeps_state)
    if not found:
        able = " and ".join(n for n in runtime_names() if get_runtime(n).keeps_state)
        raise UnsupportedError(f"{names[0]} cannot start from a saved KV cache; {able} can")
    return found


def preferred_runtime(format: str) -> str:
    """The first of `installed_runtimes`; raises as that does."""
    return installed_runtimes(format)[0]
