"""Which formats can represent a model, merged or with its adapter apart, and at what loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeadapt.errors import CorruptFileError, EdgeAdaptError, UnsupportedError
from edgeadapt.weights import WeightSource


@dataclass(frozen=True)
class Target:
    """One format, and whether it can carry this model or adapter."""

    format: str
    mode: str
    """`merged` (one artifact) or `separate` (the adapter beside the base's)."""
    possible: bool | None
    """None: that depends on the base, which is not known."""
    reason: str | None = None
    """Why not."""
    notes: tuple[str, ...] = ()
    """What is lost or changed on the way."""

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"notes": list(self.notes)}


Check = Callable[[WeightSource, Path | None], tuple[str, ...]]
"""What a format would lose of a model; raises where it cannot carry it."""


def merged_targets(source: WeightSource, folder: Path | None) -> list[Target]:
    """What a model can be exported to.

    Args:
        source: its tensors and config.
        folder: where its tokenizer is; unknown, the tokenizer is not looked at.
    """
    return [_target(name, check, source, folder) for name, check in _CHECKS]


def _target(name: str, check: Check, source: WeightSource, folder: Path | None) -> Target:
    try:
        return Target(name, "merged", True, notes=check(source, folder))
    except CorruptFileError:
        raise
    except EdgeAdaptError as error:
        return Target(name, "merged", False, str(error))


def check_gguf(source: WeightSource, folder: Path | None) -> tuple[str, ...]:
    """See that the GGUF converter takes a model; returns what the file will not say.

    Raises:
        UnsupportedError: it does not.
    """
    import gguf

    from edgeadapt.converters.gguf.architectures import family_of
    from edgeadapt.converters.gguf.limits import limits_of
    from edgeadapt.converters.gguf.vocab import add_vocabulary

    family = family_of(source.config)
    family.plan(source)
    if folder is not None:
        scratch = gguf.GGUFWriter(None, gguf.MODEL_ARCH_NAMES[family.arch])
        family.add_parameters(scratch)
        add_vocabulary(scratch, folder, source.config["vocab_size"])
    notes = []
    for limit in limits_of(source.config):
        if limit.exact_context == 0:
            raise UnsupportedError(f"llama.cpp cannot run this model as it is: {limit.what}")
        notes.append(f"equals the model up to {limit.exact_context} tokens: {limit.what}")
    return tuple(notes)


def check_onnx(source: WeightSource, folder: Path | None) -> tuple[str, ...]:
    """See that the ONNX converter takes a model; returns what the graph will not say.

    Raises:
        UnsupportedError: it does not.
    """
    from edgeadapt.converters.onnx.builder import check_supported
    from edgeadapt.converters.onnx.stream.families import unsupported

    if unsupported(source.config) is not None:
        check_supported(source.config)
    return ()


_CHECKS: tuple[tuple[str, Check], ...] = (("gguf", check_gguf), ("onnx", check_onnx))
