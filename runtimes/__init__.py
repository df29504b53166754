"""One module per engine that runs a model: llama.cpp, ONNX Runtime, ORT GenAI, torch."""

from edgeadapt.runtimes.base import Runtime, Session, SessionSettings
from edgeadapt.runtimes.registry import get_runtime, runtime_names, runtimes_for

__all__ = [
    "Runtime",
    "Session",
    "SessionSettings",
    "get_runtime",
    "runtime_names",
    "runtimes_for",
]
