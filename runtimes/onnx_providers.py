"""Execution providers of ONNX Runtime by short names: what computes the graph."""

from __future__ import annotations

from typing import Any

from edgeadapt.errors import InputError, UnsupportedError

_PROVIDERS: dict[str, tuple[str, str | None, str]] = {
    # ONNX Runtime's name, onnxruntime-genai's name if it has one, and what brings it.
    "cpu": ("CPUExecutionProvider", "cpu", "pip install onnxruntime"),
    "xnnpack": (
        "XnnpackExecutionProvider", None,
        "ONNX Runtime's Android and iOS packages have it, or a build with --use_xnnpack",
    ),
    "qnn": ("QNNExecutionProvider", "QNN", "on Snapdragon, pip install onnxruntime-qnn"),
    "nnapi": ("NnapiExecutionProvider", None, "ONNX Runtime's Android package has it"),
    "cuda": (
        "CUDAExecutionProvider", "cuda",
        "pip install onnxruntime-gpu, and onnxruntime-genai-cuda for ort-genai",
    ),
    "tensorrt": (
        "TensorrtExecutionProvider", None, "pip install onnxruntime-gpu and NVIDIA's TensorRT"
    ),
    "coreml": ("CoreMLExecutionProvider", None, "on macOS, pip install onnxruntime"),
    "directml": (
        "DmlExecutionProvider", "DML",
        "on Windows, pip install onnxruntime-directml, and onnxruntime-genai-directml for "
        "ort-genai",
    ),
}  # fmt: skip

PROVIDERS = tuple(_PROVIDERS)
GENAI_PROVIDERS = tuple(name for name, (_, genai, _) in _PROVIDERS.items() if genai)


def available() -> tuple[str, ...]:
    """Short names of the providers that the installed onnxruntime was built with."""
    import onnxruntime as ort

    present = set(ort.get_available_providers())
    return tuple(name for name, (full, _, _) in _PROVIDERS.items() if full in present)


def require(name: str, *, genai: bool = False) -> str:
    """The engine's own name of a provider that is there.

    Args:
        name: one of `PROVIDERS`, in any case.
        genai: for onnxruntime-genai instead of onnxruntime.

    Raises:
        InputError: there is no provider of this name.
        UnsupportedError: it is not installed, or onnxruntime-genai does not drive it.
    """
    key = name.lower()
    if key not in _PROVIDERS:
        raise InputError(
            f"there is no execution provider {name!r}; choose one of {', '.join(PROVIDERS)}"
        )
    full, genai_name, how = _PROVIDERS[key]
    if genai and genai_name is None:
        raise UnsupportedError(
            f"onnxruntime-genai does not run on {key}, only on {', '.join(GENAI_PROVIDERS)}; "
            "use --runtime onnxruntime"
        )
    present = available()
    if key not in present:
        raise UnsupportedError(
            f"the installed onnxruntime has no execution provider {key} ({full}), only "
            f"{', '.join(present)}; to get it: {how}"
        )
    return genai_name or full if genai else full


def check_taken(session: Any, name: str) -> None:
    """See that a session really uses a provider: onnxruntime falls back to the CPU silently.

    Raises:
        UnsupportedError: it does not.
    """
    if name not in session.get_providers():
        raise UnsupportedError(
            f"onnxruntime could not start {name} and fell back to "
            f"{', '.join(session.get_providers())}; its driver or libraries are missing"
        )
