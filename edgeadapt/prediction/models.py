"""Shapes of well-known models, for tables that name a model and little else."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """What a model's name tells."""

    total: float
    """Parameters in 10^9."""
    active: float
    """Of them, those read for each decoded token, in 10^9: without experts that are not chosen,
    and without an input embedding that is not also the head."""
    kv_bytes: float
    """Bytes of one token in a float16 KV cache, all layers."""


def _kv(layers: int, kv_heads: int, head_dim: int) -> float:
    return 2 * 2 * layers * kv_heads * head_dim


# Gemma's E2B and E4B: what they call effective, and the head, which is the token embedding; the
# embeddings of each layer are only looked up.
_KNOWN: tuple[tuple[str, ModelShape], ...] = (
    (r"gemma-?(3n|4)-?e2b", ModelShape(5.1, 2.7, _kv(30, 2, 256))),
    (r"gemma-?(3n|4)-?e4b", ModelShape(8.0, 5.2, _kv(35, 2, 256))),
    (r"gpt-?oss-?20b", ModelShape(20.9, 3.6, _kv(24, 8, 64))),
    (r"mixtral-?8x7b", ModelShape(46.7, 12.8, _kv(32, 8, 128))),
    (r"olmoe", ModelShape(6.9, 1.3, _kv(16, 16, 128))),
    (r"deepseek-?v2-?lite", ModelShape(15.7, 2.5, 31e3)),
    (r"phi-?3\.5-?moe", ModelShape(41.9, 6.5, _kv(32, 8, 128))),
    (r"qwen3(\.\d)?-?30b|qwen3(\.\d)?-?35b", ModelShape(30.5, 3.1, _kv(48, 4, 128))),
    (r"tiny-?llama", ModelShape(1.10, 1.03, _kv(22, 4, 64))),
    (r"llama-?3\.2:?-?1b", ModelShape(1.24, 1.24, _kv(16, 8, 64))),
    (r"llama-?3\.2:?-?3b", ModelShape(3.21, 3.21, _kv(28, 8, 128))),
    (r"llama-?3(\.1)?:?-?8b", ModelShape(8.03, 7.5, _kv(32, 8, 128))),
    (r"llama-?2?:?-?7b", ModelShape(6.74, 6.6, _kv(32, 32, 128))),
    (r"llama-?2?:?-?13b", ModelShape(13.0, 12.85, _kv(40, 40, 128))),
    (r"llama-?[23](\.\d)?:?-?70b", ModelShape(69.5, 69.0, _kv(80, 8, 128))),
    (r"mistral:?-?7b|mistral$", ModelShape(7.25, 7.1, _kv(32, 8, 128))),
    (r"deepseek-?r1:?-?(distill-?qwen-?)?1\.5b", ModelShape(1.78, 1.54, _kv(28, 2, 128))),
    (r"deepseek-?r1:?-?(distill-?qwen-?)?7b", ModelShape(7.62, 7.07, _kv(28, 4, 128))),
    (r"deepseek-?r1:?-?(distill-?llama-?)?8b", ModelShape(8.03, 7.5, _kv(32, 8, 128))),
    (r"qwen-?2(\.5)?(-?coder)?:?-?0\.5b", ModelShape(0.494, 0.494, _kv(24, 2, 64))),
    (r"qwen-?2(\.5)?(-?coder)?:?-?1\.5b", ModelShape(1.54, 1.54, _kv(28, 2, 128))),
    (r"qwen-?2(\.5)?(-?coder)?:?-?3b", ModelShape(3.09, 3.09, _kv(36, 2, 128))),
    (r"qwen-?2(\.5)?(-?coder|-?vl)?:?-?7b", ModelShape(7.62, 7.07, _kv(28, 4, 128))),
    (r"qwen(1\.5)?:?-?1\.8b", ModelShape(1.84, 1.53, _kv(24, 16, 128))),
    (r"qwen-?3:?-?0\.6b", ModelShape(0.6, 0.6, _kv(28, 8, 128))),
    (r"qwen-?3:?-?1\.7b", ModelShape(1.72, 1.72, _kv(28, 8, 128))),
    (r"qwen-?3:?-?4b", ModelShape(4.02, 4.02, _kv(36, 8, 128))),
    (r"qwen-?3:?-?8b", ModelShape(8.19, 7.57, _kv(36, 8, 128))),
    (r"phi-?2$", ModelShape(2.78, 2.65, _kv(32, 32, 80))),
    (r"phi-?3(\.5)?:?-?(mini|3\.8b)", ModelShape(3.82, 3.72, _kv(32, 32, 96))),
    (r"gemma:?-?2b", ModelShape(2.51, 2.51, _kv(18, 1, 256))),
    (r"gemma-?2:?-?2b", ModelShape(2.61, 2.61, _kv(26, 4, 256))),
    (r"gemma-?3:?-?1b", ModelShape(1.0, 1.0, _kv(26, 1, 256))),
    (r"gemma-?3:?-?4b", ModelShape(3.88, 3.88, _kv(34, 4, 256))),
    (r"smollm2?:?-?135m", ModelShape(0.135, 0.135, _kv(30, 3, 64))),
    (r"smollm2?:?-?360m", ModelShape(0.362, 0.362, _kv(32, 5, 64))),
    (r"smollm[23]?:?-?1\.7b", ModelShape(1.71, 1.71, _kv(24, 32, 64))),
)
"""Pattern of the name, lower case with dashes for blanks, and shape as their configs say; the first
that matches wins."""

_ODD_EXPERTS = re.compile(r"(\d+)x(\d+(?:\.\d+)?)b")
_ACTIVE = re.compile(r"\ba(\d+(?:\.\d+)?)([bm])\b")
_SIZE = re.compile(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)([bm])(?![a-z0-9])")


def find_model(name: str, billions: float | None = None) -> ModelShape | None:
    """The shape of a model, from its name and, where given, its size in 10^9 parameters.

    A size that contradicts the known shape (a text part, another cut) scales it. Names of mixtures
    of experts tell what is active (`30B-A3B`); None if nothing tells the size.
    """
    text = re.sub(r"[\s_/]+", "-", name.strip().lower())
    shape = next((shape for p, shape in _KNOWN if re.search(rf"(?<![a-z0-9]){p}", text)), None)
    if shape is not None:
        if billions is None or abs(billions / shape.total - 1) < 0.25:
            return shape
        if shape.active < 0.8 * shape.total:  # a size beside a mixture can mean either part
            return shape
    sizes = [float(n) / (1000 if unit == "m" else 1) for n, unit in _SIZE.findall(text)]
    total = billions or _experts_total(text) or next(iter(sizes), None)
    if total is None or not 0 < total < 1e5:
        return None
    active = min(total, _active(text) or total)
    return ModelShape(total, active, _usual_kv(total))


def _active(text: str) -> float | None:
    if found := _ACTIVE.search(text):
        return float(found.group(1)) / (1000 if found.group(2) == "m" else 1)
    if found := _ODD_EXPERTS.search(text):
        return 1.75 * float(found.group(2))  # two experts of eight, and the attention once
    return None


def _experts_total(text: str) -> float | None:
    found = _ODD_EXPERTS.search(text)
    return 0.82 * float(found.group(1)) * float(found.group(2)) if found else None


def _usual_kv(billions: float) -> float:
    """KV bytes of a token where nothing is known: 32 KiB at a billion, 128 KiB at eight."""
    return float(32768 * max(billions, 0.05) ** (2 / 3))
