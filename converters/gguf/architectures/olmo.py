"""OLMo 2: norms after attention and feed-forward, and on q and k as a whole."""

from __future__ import annotations

from typing import ClassVar

import gguf

from edgeadapt.converters.gguf.architectures.base import Family


class Olmo2(Family):
    """Everything else is the plain decoder."""

    arch = gguf.MODEL_ARCH.OLMO2
    classes: ClassVar[tuple[str, ...]] = ("Olmo2ForCausalLM",)
    default_theta = 10000.0
