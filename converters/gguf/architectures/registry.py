"""Which family converts which architecture."""

from __future__ import annotations

from typing import Any

from edgeadapt.adapters.sequential import check_without
from edgeadapt.converters.gguf.architectures.base import Family
from edgeadapt.converters.gguf.architectures.gemma import Gemma2, Gemma3
from edgeadapt.converters.gguf.architectures.llama import Granite, Llama, Mistral, Mixtral, SmolLM3
from edgeadapt.converters.gguf.architectures.olmo import Olmo2
from edgeadapt.converters.gguf.architectures.phi import Phi3
from edgeadapt.converters.gguf.architectures.qwen import Qwen2, Qwen3, Qwen3Moe
from edgeadapt.errors import CorruptFileError, UnsupportedError

FAMILIES: tuple[type[Family], ...] = (
    Llama, Mistral, SmolLM3, Granite, Mixtral, Qwen2, Qwen3, Qwen3Moe, Gemma2, Gemma3, Phi3, Olmo2,
)  # fmt: skip


def family_of(config: dict[str, Any]) -> Family:
    """The family for a config.json.

    Raises:
        CorruptFileError: it names none that can be read.
        UnsupportedError: there is no such family; the message names the architecture and
            those supported.
    """
    check_without(config, "llama.cpp's graphs have")
    named = config.get("architectures") or []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise CorruptFileError(f"config.json has architectures = {named!r}, expected a list")
    for family in FAMILIES:
        if any(name in family.classes for name in named):
            return family(config)
    known = ", ".join(sorted(name for family in FAMILIES for name in family.classes))
    raise UnsupportedError(
        f"the GGUF converter does not know the architecture {', '.join(named) or 'none given'}; "
        f"it knows {known}"
    )
