"""Trained prefixes and soft prompts as the KV cache that they amount to."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeadapt.adapters.spec import WEIGHTS, AdapterSpec, system_in
from edgeadapt.errors import AdapterError, UnsupportedError
from edgeadapt.extras import need
from edgeadapt.prefix import Prefix
from edgeadapt.safetensors_io import SafetensorsFile
from edgeadapt.weights import Float32Array, WeightSource, read_tensor

_PREFIXES = frozenset({"PREFIX_TUNING"})
_SOFT_PROMPTS = frozenset({"PROMPT_TUNING", "P_TUNING"})
CACHEABLE = _PREFIXES | _SOFT_PROMPTS
"""Methods whose result is the KV cache of a few positions before the text."""

_EMBEDDINGS = "prompt_embeddings"


def trained_prefix(spec: AdapterSpec, base: WeightSource, base_sha256: str | None) -> Prefix:
    """The keys and values that an adapter puts before the text.

    PEFT saves a prefix as one row for each position, which holds for each layer its key and its
    value, head by head; it rotates neither. A soft prompt is rows of input embeddings: their keys
    and values are those of one pass through the model.

    Args:
        spec: the adapter.
        base: what it was trained on.
        base_sha256: written into the prefix.

    Raises:
        AdapterError: it does not fit the base, or holds numbers that are not finite.
        UnsupportedError: its method leaves no KV cache of its own.
        MissingExtraError: a soft prompt, and torch is not installed.
    """
    if spec.peft_type not in CACHEABLE:
        raise UnsupportedError(
            f"{spec.method} leaves no KV cache that could be a file of its own; "
            f"{', '.join(sorted(name.lower() for name in CACHEABLE))} do"
        )
    rows = prompt_rows(spec)
    config = base.config
    layers, heads = int(config["num_hidden_layers"]), int(config["num_attention_heads"])
    kv_heads = int(config.get("num_key_value_heads") or heads)
    size = int(config.get("head_dim") or int(config["hidden_size"]) // heads)
    if spec.peft_type in _SOFT_PROMPTS:
        keys, values = _after_one_pass(spec, rows, base)
    else:
        if rows.shape[1] != layers * 2 * kv_heads * size:
            raise AdapterError(
                f"the prefix has {rows.shape[1]} numbers for each position, and the base takes "
                f"{layers} layers x 2 x {kv_heads} heads x {size}; it was trained on "
                f"{spec.base_model or 'another base'}: give that base with --base"
            )
        # (tokens, layers, key and value, heads, size) -> (key and value, layers, heads, tokens, ..)
        both = rows.reshape(len(rows), layers, 2, kv_heads, size).transpose(2, 1, 3, 0, 4)
        keys, values = (np.ascontiguousarray(each) for each in both)
    return Prefix(keys, values, base_sha256, system_in(spec.record))


def prompt_rows(spec: AdapterSpec) -> Float32Array:
    """What PEFT saved of a prefix or soft prompt, a row for each position.

    Raises:
        AdapterError: there is nothing, or a number that is not finite.
    """
    file = SafetensorsFile(spec.path / WEIGHTS)
    found = file.tensors()
    if _EMBEDDINGS not in found or len(found[_EMBEDDINGS].shape) != 2:
        raise AdapterError(f"{file.path} holds no {_EMBEDDINGS}; was the adapter trained?")
    rows = read_tensor(file, _EMBEDDINGS)
    if not np.isfinite(rows).all() or not len(rows):
        raise AdapterError(f"{file.path} holds NaN or infinite values, or nothing")
    return rows


def _after_one_pass(
    spec: AdapterSpec, embeddings: Float32Array, base: WeightSource
) -> tuple[Float32Array, Float32Array]:
    from edgeadapt.calibration.activations import load_model

    torch = need("torch", "running a soft prompt through its base")
    if embeddings.shape[1] != base.config["hidden_size"]:
        raise AdapterError(
            f"the soft prompt is {embeddings.shape[1]} wide, and the base "
            f"{base.config['hidden_size']}; it was trained on {spec.base_model or 'another base'}"
        )
    model: Any = load_model(base)
    with torch.no_grad():
        inputs = torch.from_numpy(embeddings)[None]
        cache = model(inputs_embeds=inputs, use_cache=True).past_key_values
    keys, values = (
        np.stack([getattr(layer, kind)[0].float().numpy() for layer in cache.layers])
        for kind in ("keys", "values")
    )
    return keys, values
