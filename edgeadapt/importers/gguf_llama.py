"""Tensors and config.json of a Llama in GGUF, in Hugging Face's names and layout.

Names and keys: llama.cpp's gguf-py (`constants.py`, `tensor_mapping.py`) and docs/gguf.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np

from edgeadapt.errors import CorruptFileError, UnsupportedError
from edgeadapt.gguf_io import GgufFile
from edgeadapt.weights import Float32Array, TensorInfo

_OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ROPE_FACTORS = "rope_freqs.weight"
_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


def _hf_name(name: str) -> str | None:
    if name in _OUTER:
        return _OUTER[name]
    match = _LAYER.fullmatch(name)
    if match is None or match[2] not in _INNER:
        return None
    return f"model.layers.{int(match[1])}.{_INNER[match[2]]}.{match[3]}"


class GgufLlama:
    """A `WeightSource` over a GGUF file of the architecture `llama`."""

    def __init__(self, file: GgufFile) -> None:
        """Map the tensors and derive config.json; no tensor but the RoPE factors is read.

        Raises:
            CorruptFileError: a key or tensor is missing, or shapes disagree with the keys.
            UnsupportedError: the file uses what LlamaForCausalLM cannot express.
        """
        self._file = file
        self._gguf_name: dict[str, str] = {}
        for name in file.tensors:
            if name == _ROPE_FACTORS:
                continue
            hf_name = _hf_name(name)
            if hf_name is None:
                raise UnsupportedError(
                    f"{file.path}: tensor {name!r:.80} has no place in a plain Llama model"
                )
            self._gguf_name[hf_name] = name
        self._config = _config(file, set(self._gguf_name))
        self._tensors: dict[str, TensorInfo] = {}
        for name, shape in _expected(self._config):
            self._check(name, shape)
            self._tensors[name] = TensorInfo(name, shape, "F32")
        extra = self._gguf_name.keys() - self._tensors.keys()
        if extra:
            raise CorruptFileError(
                f"{file.path}: {self._gguf_name[min(extra)]} is not among what its keys describe"
            )

    @property
    def config(self) -> dict[str, Any]:
        """config.json of a LlamaForCausalLM."""
        return self._config

    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor by its Hugging Face name."""
        return self._tensors

    def rows(self, name: str, start: int, stop: int) -> Float32Array:
        """Rows [start, stop) as float32, in Hugging Face's order of rows."""
        gguf_name = self._gguf_name[name]
        if ".q_proj." not in name and ".k_proj." not in name:
            return self._file.rows(gguf_name, start, stop)
        # whole heads are read, as rows are reordered within each
        dim = self._config["head_dim"]
        first, last = start // dim * dim, -(-stop // dim) * dim
        return _halves(self._file.rows(gguf_name, first, last), dim)[start - first : stop - first]

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        if name not in self._gguf_name:
            raise CorruptFileError(f"{self._file.path} lacks the tensor for {name}")
        found = self._file.tensors[self._gguf_name[name]].shape
        if found != shape:
            raise CorruptFileError(
                f"{self._file.path}: tensor {self._gguf_name[name]} has shape {found}, "
                f"its keys promise {shape}"
            )


def _halves(rows: Float32Array, head_dim: int) -> Float32Array:
    """Undo llama.cpp's order of a q or k projection's rows within each head.

    llama.cpp rotates neighbouring rows (2j, 2j+1), Hugging Face rows (j, j + head_dim/2).
    """
    paired = rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(paired.swapaxes(1, 2)).reshape(rows.shape)


def _expected(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor that the config calls for, in Hugging Face's order."""
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    linear = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (wide, hidden),
        "mlp.up_proj": (wide, hidden),
        "mlp.down_proj": (hidden, wide),
    }
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (hidden,)
        yield prefix + "post_attention_layernorm.weight", (hidden,)
        for module, shape in linear.items():
            yield f"{prefix}{module}.weight", shape
            if config["attention_bias" if module.startswith("self_attn") else "mlp_bias"]:
                yield f"{prefix}{module}.bias", shape[:1]
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (config["vocab_size"], hidden)


def _config(file: GgufFile, names: set[str]) -> dict[str, Any]:
    def whole(key: str, default: int | None = None) -> int:
        value = file.get(f"llama.{key}", int, default)
        if not 0 < value < 2**31:
            raise CorruptFileError(f"{file.path}: llama.{key} is {value}")
        return value

    hidden, heads = whole("embedding_length"), whole("attention.head_count")
    head_dim = whole("attention.key_length", max(1, hidden // heads))
    layers, kv_heads = whole("block_count"), whole("attention.head_count_kv", heads)
    _refuse_other_shapes(file, hidden, heads, kv_heads, head_dim, layers)
    if "token_embd.weight" not in file.tensors:
        raise CorruptFileError(f"{file.path} lacks the tensor token_embd.weight")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "hidden_size": hidden,
        "intermediate_size": whole("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": whole("context_length"),
        "rms_norm_eps": _shortest(file.get("llama.attention.layer_norm_rms_epsilon", float)),
        "rope_parameters": _rope(file, head_dim),
        "attention_bias": any("_proj.bias" in n and ".self_attn." in n for n in names),
        "mlp_bias": any("_proj.bias" in n and ".mlp." in n for n in names),
        "tie_word_embeddings": "lm_head.weight" not in names,
        **{
            f"{short}_token_id": file.get(f"tokenizer.ggml.{key}_token_id", int)
            for short, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
            if f"tokenizer.ggml.{key}_token_id" in file.metadata
        },
    }


def _refuse_other_shapes(
    file: GgufFile, hidden: int, heads: int, kv_heads: int, head_dim: int, layers: int
) -> None:
    def refuse(what: str) -> NoReturn:
        raise UnsupportedError(f"{file.path}: {what}, which a plain Llama model does not have")

    if file.get("llama.expert_count", int, 0):
        refuse("it has a mixture of experts")
    if hidden % heads or heads % kv_heads or head_dim % 2:
        refuse(f"{heads} heads and {kv_heads} key heads of {head_dim} for a width of {hidden}")
    if file.get("llama.rope.dimension_count", int, head_dim) != head_dim:
        refuse("only a part of each head is rotated")
    if file.get("llama.attention.value_length", int, head_dim) != head_dim:
        refuse("keys and values have different lengths")
    if layers > len(file.tensors):
        raise CorruptFileError(f"{file.path}: {layers} layers in {len(file.tensors)} tensors")


def _shortest(value: float) -> float:
    """The shortest decimal that is the same float32: GGUF's 9.99999974e-06 is 1e-05."""
    return float(str(np.float32(value)))


def _rope(file: GgufFile, head_dim: int) -> dict[str, Any]:
    theta = _shortest(file.get("llama.rope.freq_base", float, 10000.0))
    kind = file.get("llama.rope.scaling.type", str, "none")
    linear = file.get("llama.rope.scale_linear", float, 1.0)  # before scaling.type existed
    factor = file.get("llama.rope.scaling.factor", float, linear)
    if kind not in ("none", "linear"):
        raise UnsupportedError(f"{file.path}: RoPE scaling {kind!r:.40} cannot be imported")
    if _ROPE_FACTORS in file.tensors:
        return {"rope_theta": theta} | _llama3_scaling(file, theta, head_dim)
    if kind == "linear" or linear != 1.0:
        return {"rope_type": "linear", "rope_theta": theta, "factor": _shortest(factor)}
    return {"rope_type": "default", "rope_theta": theta}


def _llama3_scaling(file: GgufFile, theta: float, head_dim: int) -> dict[str, Any]:
    """Recognise Llama 3's RoPE scaling by the factors that it gives each frequency.

    GGUF stores the factors only. Every Llama 3 uses the same thresholds (the Llama 3.1 model
    card: low 1, high 4, original context 8192), which is checked by computing them again.
    """
    count = file.tensors[_ROPE_FACTORS].shape[0]
    found = file.rows(_ROPE_FACTORS, 0, count)
    factor, low, high, original = float(found.max()), 1.0, 4.0, 8192
    wavelengths = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((original / wavelengths - low) / (high - low), 0, 1)
    computed = 1 / ((1 - smooth) / factor + smooth)
    if found.shape != computed.shape or not np.allclose(found, computed, rtol=1e-4):
        raise UnsupportedError(f"{file.path}: its RoPE factors are not those of Llama 3")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
