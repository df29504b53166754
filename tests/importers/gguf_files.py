"""GGUF files written from tiny Hugging Face folders the way llama.cpp's converter writes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}

Edit = Callable[[gguf.GGUFWriter], None]


def gguf_name(name: str) -> str:
    module, _, suffix = name.rpartition(".")
    if module.startswith("model.layers."):
        _, _, layer, inner = module.split(".", 3)
        return f"blk.{layer}.{NAMES[inner]}.{suffix}"
    return f"{NAMES[module]}.{suffix}"


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Reorder rows of q and k so that rotated pairs are neighbours."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def write_gguf(
    folder: Path,
    out: Path,
    *,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    edit: Edit = lambda writer: None,
    replace: dict[str, Any] | None = None,
    architecture: str = "llama",
) -> Path:
    """Write `folder` as GGUF; `replace` overrides tokenizer keys, `edit` adds to the file."""
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(out, architecture)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    add_tokenizer(writer, folder, replace or {})
    edit(writer)
    for name, weight in load_file(folder / "model.safetensors").items():
        if ".q_proj." in name:
            weight = permute(weight, config["num_attention_heads"])
        elif ".k_proj." in name:
            weight = permute(weight, config["num_key_value_heads"])
        wide = kind if weight.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(gguf_name(name), gguf.quants.quantize(weight, wide), raw_dtype=wide)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def add_tokenizer(writer: gguf.GGUFWriter, folder: Path, replace: dict[str, Any]) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    vocabulary = sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])
    special = {token["content"] for token in tokenizer["added_tokens"]}
    tokens = [token for token, _ in vocabulary]
    values = {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": tokens,
        "types": [3 if token in special else 1 for token in tokens],
        "merges": [" ".join(pair) for pair in tokenizer["model"]["merges"]],
    } | replace
    writer.add_tokenizer_model(values["model"])
    if values["pre"] is not None:
        writer.add_tokenizer_pre(values["pre"])
    writer.add_token_list(values["tokens"])
    writer.add_token_types(values["types"])
    writer.add_token_merges(values["merges"])
    writer.add_bos_token_id(tokens.index(config["bos_token"]))
    writer.add_eos_token_id(values.get("eos", tokens.index(config["eos_token"])))
    writer.add_unk_token_id(tokens.index(config["unk_token"]))
    writer.add_pad_token_id(tokens.index(config["pad_token"]))
    writer.add_chat_template(config["chat_template"])
