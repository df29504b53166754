"""What llama.cpp's architectures cannot say, and up to which context length that does not matter.

llama.cpp computes some things in one way only (release bundled with llama-cpp-python 0.3.36,
`src/models/`). A model that wants another way gets a file that equals it for short inputs, or not
at all. The table below lists the cases; a test proves each against torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from edgeadapt.converters.gguf.architectures.base import Family
from edgeadapt.converters.gguf.architectures.gemma import Gemma, Gemma2, Gemma3
from edgeadapt.converters.gguf.architectures.llama import (
    Granite,
    Llama,
    Mistral,
    Mixtral,
    SmolLM3,
)
from edgeadapt.converters.gguf.architectures.olmo import Olmo2
from edgeadapt.converters.gguf.architectures.phi import Phi3
from edgeadapt.converters.gguf.architectures.qwen import Qwen2, Qwen3, Qwen3Moe
from edgeadapt.converters.gguf.architectures.registry import family_of

EXACT_CONTEXT = "edgeadapt.exact_context"
"""Key of the file: tokens of context up to which it equals the model; absent if without limit."""

Check = Callable[[Family], int | None]


@dataclass(frozen=True)
class Limit:
    """Something that a model has and its file cannot say."""

    name: str
    what: str
    """One clause for a person."""
    exact_context: int
    """Tokens of context up to which it makes no difference; 0: it always does."""


@dataclass(frozen=True)
class Rule:
    """One line of the table."""

    name: str
    families: tuple[type[Family], ...]
    what: str
    exact_context: Check
    """The context length up to which it does not matter, None where the model is without it."""


def limits_of(config: dict[str, Any]) -> list[Limit]:
    """What of a model its GGUF file cannot say; empty for most models.

    Args:
        config: the model's config.json.

    Raises:
        UnsupportedError: the architecture is not converted at all.
    """
    return list(_limits(family_of(config)))


def exact_context(config: dict[str, Any]) -> int | None:
    """Tokens of context up to which the file equals the model; None: any number, 0: never."""
    return min((limit.exact_context for limit in limits_of(config)), default=None)


def _limits(family: Family) -> Iterator[Limit]:
    for rule in RULES:
        if isinstance(family, rule.families):
            exact = rule.exact_context(family)
            if exact is not None:
                yield Limit(rule.name, rule.what, exact)


def _never_if(condition: Callable[[Family], bool]) -> Check:
    return lambda family: 0 if condition(family) else None


def _window(family: Family) -> int | None:
    """The sliding window of a family whose layers all have it where they have any."""
    window = family.config.get("sliding_window")
    longest = int(family.config["max_position_embeddings"])
    return window if isinstance(window, int) and window < longest else None


def _optional_window(family: Family) -> int | None:
    """Likewise, of a family that has to switch it on, for some layers or all."""
    config = family.config
    if not config.get("use_sliding_window"):
        return None
    kinds = config.get("layer_types")
    if kinds is None:  # configs from before transformers 4.53
        sliding = family.layers > int(config.get("max_window_layers", 28))
    else:
        sliding = "sliding_attention" in kinds
    return _window(family) if sliding else None


def _other_order(family: Family, period: int) -> bool:
    """llama.cpp takes for granted that each `period`-th layer is the one without a window."""
    expected = [
        "full_attention" if (layer + 1) % period == 0 else "sliding_attention"
        for layer in range(family.layers)
    ]
    return list(family.config.get("layer_types") or _by_pattern(family, period)) != expected


def _gemma2_order(family: Family) -> int | None:
    return _window(family) if _other_order(family, 2) else None


def _gemma3_order(family: Family) -> int | None:
    """Here the two kinds of layers also turn q and k by RoPE of their own, at any length."""
    if not _other_order(family, 6):
        return None
    assert isinstance(family, Gemma3)
    rope = family.rope
    same = rope["rope_type"] == "default" and float(rope["rope_theta"]) == family.local_theta
    return _window(family) if same else 0


def _by_pattern(family: Family, period: int) -> list[str]:
    own = int(family.config.get("sliding_window_pattern") or period)
    return [
        "full_attention" if (layer + 1) % own == 0 else "sliding_attention"
        for layer in range(family.layers)
    ]


def _dynamic_rope(family: Family) -> int | None:
    if family.rope["rope_type"] != "dynamic":
        return None
    rope, config = family.rope, family.config
    return int(rope.get("original_max_position_embeddings") or config["max_position_embeddings"])


def _long_rope(family: Family) -> int | None:
    rope = family.rope
    original = int(rope["original_max_position_embeddings"])
    longer = original < int(family.config["max_position_embeddings"])
    return original if rope.get("long_factor") and longer else None


def _query_scale(family: Family) -> bool:
    """llama.cpp scales by the head's size, but for the 27B models, known by their layers."""
    layers = 46 if isinstance(family, Gemma2) else 62
    expected = family.hidden // family.heads if family.layers == layers else family.head_dim
    return bool(family.config.get("query_pre_attn_scalar", 256) != expected)


def _rope_layers(family: Family) -> bool:
    config = family.config
    step = int(config.get("no_rope_layer_interval") or 4)
    own = config.get("no_rope_layers")
    uses = own or [(layer + 1) % step != 0 for layer in range(family.layers)]
    return [bool(use) for use in uses[: family.layers]] != [
        (layer + 1) % 4 != 0 for layer in range(family.layers)
    ]


def _dense_layers(family: Family) -> bool:
    config = family.config
    return bool(config.get("mlp_only_layers")) or int(config.get("decoder_sparse_step") or 1) != 1


def _partial_rope(family: Family) -> bool:
    factor = family.rope.get("partial_rotary_factor") or family.config.get("partial_rotary_factor")
    return factor is not None and float(factor) != 1.0


def _activation(family: Family) -> bool:
    known = {"gelu_pytorch_tanh"} if isinstance(family, Gemma) else {"silu", "swish"}
    key = "hidden_activation" if isinstance(family, Gemma) else "hidden_act"
    return (family.config.get(key) or next(iter(known))) not in known


def _off(key: str) -> Check:
    """A switch that llama.cpp takes for on."""
    return _never_if(lambda family: not family.config.get(key))


def _on(key: str) -> Check:
    """A switch that llama.cpp takes for off."""
    return _never_if(lambda family: bool(family.config.get(key)))


RULES: tuple[Rule, ...] = (
    Rule(
        "sliding window",
        (Mistral, Mixtral, Phi3),
        "the model's sliding window is left out by llama.cpp",
        _window,
    ),
    Rule(
        "sliding window of some layers",
        (Qwen2, Qwen3, Qwen3Moe, SmolLM3),
        "the sliding window of the model's layers is left out by llama.cpp",
        _optional_window,
    ),
    Rule(
        "order of layers",
        (Gemma2,),
        "llama.cpp gives a sliding window to every other layer, the model to others",
        _gemma2_order,
    ),
    Rule(
        "order of layers",
        (Gemma3,),
        "llama.cpp gives a sliding window and its RoPE to five layers of six, the model to others",
        _gemma3_order,
    ),
    Rule(
        "dynamic RoPE",
        (Family,),
        "llama.cpp does not stretch RoPE as the text grows ('dynamic' scaling)",
        _dynamic_rope,
    ),
    Rule(
        "LongRoPE",
        (Phi3,),
        "llama.cpp picks RoPE's short or long factors by the context it is given room for (n_ctx), "
        "the model by the length of the text",
        _long_rope,
    ),
    Rule(
        "scale of attention",
        (Gemma2, Gemma3),
        "its query_pre_attn_scalar is not the size of a head",
        _never_if(_query_scale),
    ),
    Rule(
        "layers without RoPE",
        (SmolLM3,),
        "llama.cpp leaves RoPE out of every fourth layer, the model of others",
        _never_if(_rope_layers),
    ),
    Rule(
        "size of a head",
        (Granite, Qwen2, Olmo2, Phi3, SmolLM3),
        "its head_dim is not the hidden size divided by the heads",
        _never_if(lambda family: family.head_dim * family.heads != family.hidden),
    ),
    Rule(
        "part of a head",
        (Llama, Qwen2, Qwen3, Qwen3Moe, Gemma, Olmo2),
        "it applies RoPE to a part of each head only (partial_rotary_factor)",
        _never_if(_partial_rope),
    ),
    Rule(
        "activation",
        (Family,),
        "its activation function is not the one of this architecture",
        _never_if(_activation),
    ),
    Rule(
        "weights of experts",
        (Qwen3Moe,),
        "llama.cpp makes the weights of the chosen experts sum to one, the model does not "
        "(norm_topk_prob)",
        _off("norm_topk_prob"),
    ),
    Rule(
        "layers without experts",
        (Qwen3Moe,),
        "some of its layers have no experts",
        _never_if(_dense_layers),
    ),
    Rule(
        "soft cap on attention",
        (Gemma2,),
        "llama.cpp caps attention, the model does not (attn_logit_softcapping)",
        _off("attn_logit_softcapping"),
    ),
    Rule(
        "soft cap on attention",
        (Gemma3,),
        "the model caps attention (attn_logit_softcapping), llama.cpp does not",
        _on("attn_logit_softcapping"),
    ),
    Rule(
        "attention to later tokens",
        (Gemma2, Gemma3),
        "it attends to later tokens (use_bidirectional_attention)",
        _on("use_bidirectional_attention"),
    ),
    Rule(
        "head of its own",
        (Gemma2,),
        "llama.cpp uses the embedding as the head, the model has one of its own",
        _off("tie_word_embeddings"),
    ),
    Rule(
        "head tied to the embedding",
        (Olmo2,),
        "llama.cpp wants a head apart from the embedding, the model has none",
        _on("tie_word_embeddings"),
    ),
)  # fmt: skip
