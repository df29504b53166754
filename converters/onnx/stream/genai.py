"""`genai_config.json`, which tells onnxruntime-genai what the graph's inputs and outputs are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeadapt.converters.onnx.names import genai_names
from edgeadapt.converters.onnx.stream.architecture import Decoder
from edgeadapt.files import read_json

_TYPES = {"Gemma3ForCausalLM": "gemma3_text"}
"""What onnxruntime-genai calls a model, where it is not the first half of its class's name."""

_SEARCH: dict[str, Any] = {
    "diversity_penalty": 0.0, "do_sample": False, "early_stopping": True, "length_penalty": 1.0,
    "min_length": 0, "no_repeat_ngram_size": 0, "num_beams": 1, "num_return_sequences": 1,
    "repetition_penalty": 1.0, "temperature": 1.0, "top_k": 50, "top_p": 1.0,
}  # fmt: skip
"""Its search options, at transformers' defaults; a model's generation config overrides them."""


def genai_config(decoder: Decoder, config: dict[str, Any], model_folder: Path) -> dict[str, Any]:
    """The whole file.

    Args:
        decoder: what the graph computes.
        config: the model's config.json.
        model_folder: where its generation config is, if it has one.
    """
    path = model_folder / "generation_config.json"
    generation = read_json(path) if path.is_file() else {}
    name = _TYPES.get(decoder.family, decoder.family.partition("For")[0].lower())
    said = config | {key: value for key, value in generation.items() if value is not None}
    stop = _or(said.get("eos_token_id"), 0)
    first = stop[0] if isinstance(stop, list) and stop else stop
    return {
        "model": {
            "bos_token_id": _or(said.get("bos_token_id"), first),
            "context_length": decoder.context,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": "model.onnx",
                "head_size": decoder.head_size,
                "hidden_size": decoder.hidden,
                **genai_names(positions=False),
                "num_attention_heads": decoder.heads,
                "num_hidden_layers": len(decoder.layers),
                "num_key_value_heads": decoder.kv_heads,
            },
            "eos_token_id": stop,
            "pad_token_id": _or(said.get("pad_token_id"), first),
            "type": name,
            "vocab_size": decoder.vocab_size,
        },
        "search": _SEARCH
        | {key: generation[key] for key in _SEARCH if generation.get(key) is not None}
        | {"max_length": decoder.context, "past_present_share_buffer": True},
    }


def _or(value: int | None, other: int) -> int:
    return other if value is None else value
