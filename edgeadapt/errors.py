"""What can go wrong, as a tree.

EdgeAdaptError              exit code 2: the input or the request cannot be served
├── InputError              a file, value or name that was given is wrong
│   ├── DiskFullError       the disk has no room for what was asked for
│   ├── ChangedError        an input was changed or removed while it was used
│   ├── CorruptFileError    a file is truncated, malformed or hostile
│   ├── AdapterError        an adapter does not fit the base, or cannot be merged
│   └── UnsupportedError    a model, method or type that edgeadapt does not handle
├── MissingExtraError       an optional library is not installed
├── MissingSetupError       something that `edgeadapt setup` makes is not there
├── RuntimeFailure          an engine (llama.cpp, ONNX Runtime, torch) failed on its side
│   └── DivergedError       training's loss is not a number any more
├── HostFailure             another machine is not to be reached, vanished, or failed
└── GateFailure             exit code 1: everything ran, and the result is not good enough

A message says what was found, what was expected and what to type next.
"""

from __future__ import annotations

from typing import Any


class EdgeAdaptError(Exception):
    """Base of every error that edgeadapt raises on purpose."""

    exit_code = 2


class InputError(EdgeAdaptError):
    """A file, value or name that was given is wrong."""


class DiskFullError(InputError):
    """The disk has no room for what was asked for."""


class ChangedError(InputError):
    """An input was changed or removed while it was used."""


class CorruptFileError(InputError):
    """A file is truncated, malformed or hostile."""


class AdapterError(InputError):
    """An adapter does not fit the base, or cannot be merged."""


class UnsupportedError(InputError):
    """A model, method or type that edgeadapt does not handle."""


class MissingExtraError(EdgeAdaptError):
    """An optional library is not installed."""

    def __init__(self, module: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the Python package {module!r}, which is not installed; "
            f"type: pip install 'edgeadapt[{extra}]'"
        )


class MissingSetupError(EdgeAdaptError):
    """Something that `edgeadapt setup` makes is not there."""


class RuntimeFailure(EdgeAdaptError):
    """An engine (llama.cpp, ONNX Runtime, torch) failed on its side."""

    outcome: str = "failed"
    """How: `timeout`, `killed`, `out_of_memory`, or `failed` for all else."""

    def __init__(self, message: str, outcome: str = "failed") -> None:
        super().__init__(message)
        self.outcome = outcome


class DivergedError(RuntimeFailure):
    """Training's loss is not a number any more."""


class HostFailure(EdgeAdaptError):
    """Another machine is not to be reached, vanished, or failed."""

    timed_out = False
    """It was there, and took too long."""


class GateFailure(EdgeAdaptError):
    """Everything ran, and the result is not good enough."""

    exit_code = 1
    record: dict[str, Any] | None = None
    """What --json prints: `gates`, `failed_gates` and `passed`, at least."""

    def __init__(self, message: str, record: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.record = record
