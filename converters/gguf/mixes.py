"""Which type each tensor gets under a named quantization: llama.cpp's rules, as tables.

`Q4_K_M` is not a type but a mix: most tensors get Q4_K, some more bits, depending on what they do
and in which layer they stand. The rules restate llama.cpp's `llama-quant.cpp` (release bundled
with llama-cpp-python 0.3.36); a test compares with what that library itself writes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from edgeadapt.errors import InputError

T = GGMLQuantizationType

MIXES: dict[str, tuple[LlamaFileType, GGMLQuantizationType]] = {
    name: (LlamaFileType[f"MOSTLY_{name}" if name != "F32" else "ALL_F32"], T[default])
    for name, default in {
        "F32": "F32", "F16": "F16", "BF16": "BF16", "Q8_0": "Q8_0",
        "Q4_0": "Q4_0", "Q4_1": "Q4_1", "Q5_0": "Q5_0", "Q5_1": "Q5_1",
        "Q2_K": "Q2_K", "Q2_K_S": "Q2_K",
        "Q3_K_S": "Q3_K", "Q3_K_M": "Q3_K", "Q3_K_L": "Q3_K",
        "Q4_K_S": "Q4_K", "Q4_K_M": "Q4_K", "Q5_K_S": "Q5_K", "Q5_K_M": "Q5_K", "Q6_K": "Q6_K",
        "IQ1_S": "IQ1_S", "IQ1_M": "IQ1_M",
        "IQ2_XXS": "IQ2_XXS", "IQ2_XS": "IQ2_XS", "IQ2_S": "IQ2_XS", "IQ2_M": "IQ2_S",
        "IQ3_XXS": "IQ3_XXS", "IQ3_XS": "IQ3_S", "IQ3_S": "IQ3_S", "IQ3_M": "IQ3_S",
        "IQ4_NL": "IQ4_NL", "IQ4_XS": "IQ4_XS", "TQ1_0": "TQ1_0", "TQ2_0": "TQ2_0",
    }.items()
}  # fmt: skip
"""Name of a quantization: its number in `general.file_type`, and the type of most tensors."""

TENSOR_TYPES: dict[str, GGMLQuantizationType] = {
    kind.name: kind for kind in sorted({default for _, default in MIXES.values()} | {T.IQ2_S})
}
"""Types that a single tensor can be given."""

_FALLBACK = {
    **dict.fromkeys(
        (T.IQ1_S, T.IQ1_M, T.IQ2_XXS, T.IQ2_XS, T.IQ2_S, T.IQ3_XXS, T.IQ3_S, T.IQ4_XS), T.IQ4_NL
    ),
    **dict.fromkeys((T.Q2_K, T.Q3_K, T.TQ1_0, T.TQ2_0), T.Q4_0),
    T.Q4_K: T.Q5_0,
    T.Q5_K: T.Q5_1,
    T.Q6_K: T.Q8_0,
}
"""Where rows are no multiple of a super-block of 256, a type with blocks of 32 steps in."""

_NEVER = re.compile(
    r"_norm\.weight|ffn_gate_inp\.weight|altup|laurel|per_layer_model_proj|ssm_conv1d"
    r"|shortconv\.conv\.weight|attn_rel_b\.weight|\.position_embd|position_embd|token_types"
)
"""Matrices that stay as they are, small or delicate."""

_CATEGORIES = (
    ("output", re.compile(r"^output\.weight$")),
    ("embedding", re.compile(r"^(per_layer_)?token_embd\.weight$")),
    ("attn_qkv", re.compile(r"attn_qkv\.weight")),
    ("attn_v", re.compile(r"attn_(kv_b|v)\.weight")),
    ("attn_k", re.compile(r"attn_k\.weight")),
    ("attn_q", re.compile(r"attn_q\.weight")),
    ("attn_output", re.compile(r"attn_output\.weight")),
    ("ffn_up", re.compile(r"ffn_up")),
    ("ffn_gate", re.compile(r"ffn_gate")),
    ("ffn_down", re.compile(r"ffn_down")),
)

_LOW_BIT = frozenset({"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M"})
_NEEDS_IMPORTANCE = frozenset({T.IQ3_XXS, T.IQ2_XXS, T.IQ2_XS, T.IQ2_S, T.IQ1_M, T.IQ1_S})


@dataclass(frozen=True)
class ModelShape:
    """What the rules ask about the model."""

    layers: int
    heads: int
    kv_heads: int
    experts: int = 0
    importance: bool = False
    """Whether an importance matrix is used."""
    is_70b: bool = False
    """llama.cpp calls some models 70B, and spends bits on their small attn_v."""

    @property
    def query_groups(self) -> int:
        """Query heads per key-value head."""
        return self.heads // max(1, self.kv_heads)


def choose_types(
    tensors: Mapping[str, Sequence[int]],
    mix: str,
    model: ModelShape,
    overrides: Sequence[tuple[str, GGMLQuantizationType]] = (),
) -> dict[str, GGMLQuantizationType]:
    """Type of every tensor.

    Args:
        tensors: GGUF name -> shape, slowest axis first.
        mix: one of `MIXES`.
        model: its dimensions.
        overrides: (regular expression, type), the first that is found in the name wins.

    Raises:
        InputError: a type needs an importance matrix and there is none, or an override has no
            effect: it matches no tensor, or the mix quantizes nothing.
    """
    default = MIXES[mix][1]
    _check_overrides(tensors, mix, overrides)
    rules = _Rules(mix, model, tied="output.weight" not in tensors, names=tensors)
    chosen = {}
    for name in sorted(tensors, key=_llama_cpp_order):
        shape = tensors[name]
        if not is_matrix(name, shape):
            chosen[name] = T.F32
            continue
        kind = default
        if _is_quantized(default):
            manual = next((k for pattern, k in overrides if re.search(pattern, name)), None)
            kind = manual if manual is not None else rules.type_of(name, shape[-1])
            kind = _fallback(kind, shape[-1])
        _check_importance(name, kind, mix, model.importance)
        chosen[name] = kind
    return {name: chosen[name] for name in tensors}


def _check_overrides(
    tensors: Mapping[str, Sequence[int]],
    mix: str,
    overrides: Sequence[tuple[str, GGMLQuantizationType]],
) -> None:
    """llama-quantize ignores an override without effect; here it is an error."""
    if overrides and not _is_quantized(MIXES[mix][1]):
        raise InputError(
            f"{mix} quantizes nothing, so --tensor-type has no effect; choose another quantization"
        )
    for pattern, kind in overrides:
        if not any(re.search(pattern, name) and is_matrix(name, s) for name, s in tensors.items()):
            raise InputError(
                f"--tensor-type {pattern}={kind.name} matches no tensor that is quantized; names "
                "are llama.cpp's, such as blk.0.ffn_down.weight"
            )


def is_matrix(name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor is one that llama.cpp quantizes."""
    return len(shape) >= 2 and name.endswith("weight") and not _NEVER.search(name)


def _llama_cpp_order(name: str) -> tuple[int, str]:
    """By layer, then by name: the rules count layers in this order."""
    match = re.match(r"blk\.(\d+)\.", name)
    return (int(match[1]) if match else -1, name)


def _is_quantized(kind: GGMLQuantizationType) -> bool:
    return kind not in (T.F32, T.F16, T.BF16)


def _fallback(kind: GGMLQuantizationType, columns: int) -> GGMLQuantizationType:
    if columns % GGML_QUANT_SIZES[kind][0] == 0:
        return kind
    kind = _FALLBACK.get(kind, kind)
    return kind if columns % GGML_QUANT_SIZES[kind][0] == 0 else T.F16


def _check_importance(name: str, kind: GGMLQuantizationType, mix: str, present: bool) -> None:
    if not present and needs_importance(name, kind, mix):
        raise InputError(
            f"{mix} stores {name} as {kind.name}, which is garbage without an importance matrix; "
            "give --calibrate DATA or --imatrix FILE, or choose a quantization of Q2_K or more"
        )


def needs_importance(name: str, kind: GGMLQuantizationType, mix: str) -> bool:
    """Whether a tensor of this type is garbage without an importance matrix."""
    if name in {"token_embd.weight", "output.weight"}:
        return False
    return kind in _NEEDS_IMPORTANCE or (kind == T.Q2_K and mix == "Q2_K_S")


def _category(name: str) -> str:
    return next((label for label, pattern in _CATEGORIES if pattern.search(name)), "other")


class _Rules:
    """llama.cpp's choice for one tensor after another; counts layers as it goes."""

    def __init__(
        self, mix: str, model: ModelShape, tied: bool, names: Mapping[str, object]
    ) -> None:
        self.mix = mix
        self.model = model
        self.tied = tied
        self.default = MIXES[mix][1]
        self.n_attn_v = sum(_category(name) in {"attn_v", "attn_qkv"} for name in names)
        self.i_attn_v = 0
        self.i_ffn = dict.fromkeys(("ffn_down", "ffn_gate", "ffn_up"), 0)

    def type_of(self, name: str, columns: int) -> GGMLQuantizationType:
        category = _category(name)
        if category == "output" or (self.tied and category == "embedding"):
            return self._output(columns)
        if category == "embedding":
            return _EMBEDDING.get(self.mix, self.default)
        if self.mix in _LOW_BIT:
            return self._low_bit(category)
        if category in {"attn_v", "attn_qkv"}:
            return self._attn_v()
        if category in {"attn_k", "attn_q"}:
            if category == "attn_k" and self.model.experts == 8:
                return T.Q8_0
            return {"IQ3_XS": T.IQ3_XXS, "IQ3_XXS": T.IQ2_S}.get(self.mix, self.default)
        if category == "attn_output":
            return self._attn_output()
        if category in self.i_ffn:
            layer = self._ffn_layer(category, name)
            return self._ffn_down(layer) if category == "ffn_down" else self._ffn_other(layer)
        return self.default

    def _more_bits(self, layer: int, layers: int) -> bool:
        """The first and last eighth, and every third layer between."""
        eighth = layers // 8
        return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2

    def _ffn_layer(self, category: str, name: str) -> int:
        if self.model.experts > 1:
            match = re.match(r"blk\.(\d+)\.", name)
            return int(match[1]) if match else 0
        self.i_ffn[category] += 1
        return self.i_ffn[category] - 1

    def _output(self, columns: int) -> GGMLQuantizationType:
        if columns % GGML_QUANT_SIZES[self.default][0]:
            return T.Q8_0
        if self.mix in _LOW_BIT or self.mix == "IQ3_XXS":
            return T.Q5_K
        return self.default if self.default == T.Q8_0 else T.Q6_K

    def _low_bit(self, category: str) -> GGMLQuantizationType:
        better = T.IQ3_S if self.mix in {"IQ2_S", "IQ2_M"} else T.Q2_K
        if category in {"attn_v", "attn_qkv"}:
            wide = self.model.query_groups >= 4 or self.model.experts >= 4
            return T.Q4_K if wide else better
        if category == "attn_k" and self.model.experts == 8:
            return T.Q4_K
        if category == "ffn_down":
            self.i_ffn["ffn_down"] += 1
            early = self.i_ffn["ffn_down"] - 1 < self.model.layers // 8
            return better if early else self.default
        if category == "attn_output":
            if self.model.experts == 8:
                return T.Q5_K
            return {
                "IQ1_S": T.IQ2_XXS, "IQ1_M": T.IQ2_XXS, "IQ2_S": T.IQ3_S, "IQ2_M": T.IQ3_S,
            }.get(self.mix, self.default)  # fmt: skip
        return self.default

    def _attn_v(self) -> GGMLQuantizationType:
        i, n = self.i_attn_v, self.n_attn_v
        self.i_attn_v += 1
        if self.model.experts == 8:
            return T.Q8_0
        kind = self._attn_v_dense(i, n)
        if self.model.is_70b and kind in (T.Q3_K, T.Q4_K):
            return T.Q5_K
        return kind

    def _attn_v_dense(self, i: int, n: int) -> GGMLQuantizationType:
        mix, wide = self.mix, self.model.query_groups >= 4
        if mix == "Q2_K":
            return T.Q4_K if wide else T.Q3_K
        if mix == "IQ3_XXS":
            narrow = T.IQ3_XXS if self.model.importance else T.IQ3_S
            return T.Q4_K if wide else narrow
        if wide and mix in {"Q2_K_S", "IQ3_XS", "IQ3_S"}:
            return T.Q4_K
        if wide and mix in {"IQ4_NL", "IQ4_XS"}:
            return T.Q5_K
        if mix == "Q3_K_M":
            return T.Q5_K if i < 2 else T.Q4_K
        if mix in {"Q4_K_M", "Q5_K_M"} and self._more_bits(i, n):
            return T.Q6_K
        if mix == "Q4_K_S" and i < 4:
            return T.Q5_K
        return {"IQ3_M": T.Q4_K, "Q3_K_L": T.Q5_K}.get(mix, self.default)

    def _attn_output(self) -> GGMLQuantizationType:
        if self.model.experts == 8:
            return T.Q5_K if self.mix in _EIGHT_EXPERT_OUTPUT else self.default
        return {
            "Q2_K": T.Q3_K, "IQ3_XXS": T.IQ3_S, "Q3_K_M": T.Q4_K, "Q3_K_L": T.Q5_K, "IQ3_M": T.Q4_K,
        }.get(self.mix, self.default)  # fmt: skip

    def _ffn_down(self, i: int) -> GGMLQuantizationType:
        mix, n = self.mix, self.model.layers
        early = i < n // 8
        if mix == "Q2_K":
            return T.Q3_K
        if mix == "IQ3_XXS" and not self.model.importance:
            return T.Q4_K if early else T.Q3_K
        if mix == "Q3_K_M":
            return T.Q5_K if i < n // 16 else T.Q4_K
        if mix == "IQ3_M" and self.model.experts == 8 and self._more_bits(i, n):
            return T.Q4_K
        if mix == "Q3_K_L":
            return T.Q5_K
        if mix in {"Q4_K_M", "Q5_K_M"} and self._more_bits(i, n):
            return T.Q6_K
        if early and mix in {"IQ4_NL", "IQ4_XS"} and not self.model.importance:
            return T.Q5_K
        if early and mix in {"Q4_0", "Q5_0"} and self.model.importance:
            return T.Q4_1 if mix == "Q4_0" else T.Q5_1
        if early:
            return {"Q2_K_S": T.Q4_K, "IQ3_M": T.Q4_K, "Q4_K_S": T.Q5_K}.get(mix, self.default)
        return self.default

    def _ffn_other(self, i: int) -> GGMLQuantizationType:
        n = self.model.layers
        if self.mix == "IQ3_XS" and n // 8 <= i < 7 * n // 8:
            return T.IQ3_XXS
        return self.default


_EMBEDDING = {
    **dict.fromkeys(("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"), T.Q2_K),
    **dict.fromkeys(("IQ2_S", "IQ2_M", "IQ3_XXS"), T.IQ3_S),
    **dict.fromkeys(("TQ1_0", "TQ2_0"), T.Q4_K),
}
"""Type of an embedding that is not also the output matrix, where it is not the default."""

_EIGHT_EXPERT_OUTPUT = frozenset(
    {
        "Q2_K", "IQ3_XS", "IQ3_XXS", "Q3_K_S", "Q3_K_M", "IQ4_NL", "Q4_K_S", "Q4_K_M", "IQ3_S",
        "IQ3_M", "IQ4_XS",
    }
)  # fmt: skip
