"""What can be asked of a GGUF export beyond the name of a quantization."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeadapt.errors import InputError

if TYPE_CHECKING:
    from gguf.constants import GGMLQuantizationType

    from edgeadapt.converters.gguf.imatrix import Imatrix

_UNITS = {"K": 10**3, "M": 10**6, "G": 10**9}
"""llama.cpp's: powers of ten."""


@dataclass(frozen=True)
class GgufOptions:
    """Options of the GGUF converter; the defaults are llama-quantize's."""

    importance: Imatrix | None = None
    tensor_types: tuple[tuple[str, GGMLQuantizationType], ...] = ()
    """(regular expression, type): the first that is found in a tensor's name decides."""
    split_max_bytes: int = 0
    """Tensor data in one file; 0 for a single file."""
    allocation: Mapping[str, Any] | None = None
    """How `tensor_types` were chosen for a size, as JSON; recorded in the file."""

    @property
    def label(self) -> str | None:
        """What such a choice calls itself in place of a quantization: `mixed-80MiB`."""
        return f"mixed-{self.allocation['max_size']}" if self.allocation else None


def parse_tensor_type(text: str) -> tuple[str, GGMLQuantizationType]:
    """Read `PATTERN=TYPE`, for example `ffn_down=Q6_K`.

    Raises:
        InputError: it has another form, or the type is not one that ggml quantizes to.
    """
    from edgeadapt.converters.gguf.mixes import TENSOR_TYPES

    pattern, equals, name = text.rpartition("=")
    if not equals or not pattern:
        raise InputError(f"--tensor-type {text!r}: expected PATTERN=TYPE, such as ffn_down=Q6_K")
    try:
        re.compile(pattern)
    except re.error as error:
        raise InputError(
            f"--tensor-type {text!r}: {pattern!r} is no regular expression: {error}"
        ) from error
    if name.upper() not in TENSOR_TYPES:
        raise InputError(
            f"--tensor-type {text!r}: unknown type {name!r}; choose one of "
            f"{', '.join(TENSOR_TYPES)}"
        )
    return pattern, TENSOR_TYPES[name.upper()]


def parse_size(text: str) -> int:
    """Bytes of `500M` or `2G`; units are powers of ten, as llama.cpp's.

    Raises:
        InputError: it has another form.
    """
    match = re.fullmatch(r"([1-9][0-9]{0,14})([KMG]?)", text.strip().upper())
    if match is None:
        raise InputError(f"{text!r} is not a size; expected a number with K, M or G, such as 2G")
    return int(match[1]) * _UNITS.get(match[2], 1)
