"""Tiny random models in Hugging Face folders, made in the test that needs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

CORPUS = [
    "The quick brown fox jumps over the lazy dog. 0123456789",
    "def main(argument: int) -> str: return str(argument)",
    "Grüße, naïve café — 日本語 and 🙂 too.",
]


def save_tokenizer(folder: Path, vocab_size: int = 320) -> None:
    """A byte-level BPE tokenizer with SmolLM's pre-tokenization and a ChatML template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": "<|im_start|>",
                "eos_token": "<|im_end|>",
                "unk_token": "<|endoftext|>",
                "pad_token": "<|im_end|>",
                "chat_template": CHAT_TEMPLATE,
                "model_max_length": 256,
                "clean_up_tokenization_spaces": False,
            }
        )
    )
    (folder / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2})
    )


FAMILIES: dict[str, tuple[str, dict[str, object]]] = {
    # The config class, and what a tiny model needs so that every rule of its family shows.
    "llama": ("LlamaConfig", {}),
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "smollm3": ("SmolLM3Config", {"num_hidden_layers": 5}),
    "granite": (
        "GraniteConfig",
        {
            "attention_multiplier": 0.2, "embedding_multiplier": 3.0, "residual_multiplier": 0.5,
            "logits_scaling": 2.0,
        },
    ),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 32}),
    "qwen3moe": (
        "Qwen3MoeConfig",
        {
            "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64,
            "norm_topk_prob": True, "head_dim": 32,
        },
    ),
    "gemma2": (
        "Gemma2Config",
        {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 24},
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {
            "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 24,
            "num_hidden_layers": 7,
        },
    ),
    "phi3": ("Phi3Config", {"original_max_position_embeddings": 256}),
    "olmo2": ("Olmo2Config", {}),
}  # fmt: skip


ONNX_ONLY: dict[str, tuple[str, dict[str, object]]] = {"gemma": ("GemmaConfig", {"head_dim": 32})}
"""Families that the GGUF converter does not know."""


def save_model(
    folder: Path,
    family: str,
    *,
    seed: int = 0,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    intermediate: int = 96,
    vocab_size: int = 320,
    tied: bool | None = None,
    dtype: str = "float32",
    tokenizer: bool = True,
    **config: object,
) -> Path:
    """A random model of one of `FAMILIES` or `ONNX_ONLY`, with its tokenizer; returns the folder.

    `tied` is the family's own habit unless given; `config` goes to transformers' config class.
    """
    import torch
    import transformers

    class_name, own = (FAMILIES | ONNX_ONLY)[family]
    options: dict[str, object] = {
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "initializer_range": 0.1,  # the default's logits hardly differ
    }
    if tied is not None:
        options["tie_word_embeddings"] = tied
    torch.manual_seed(seed)
    record = getattr(transformers, class_name)(**options | own | config)
    model = transformers.AutoModelForCausalLM.from_config(record)
    offset = family.startswith("gemma")  # their norms multiply by 1 + weight
    with torch.no_grad():  # untrained norms and biases are all alike, which hides mistakes
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(-0.5 if offset else 0.5, 0.5 if offset else 1.5)
            elif name.endswith(".bias"):
                parameter.uniform_(-0.5, 0.5)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    if tokenizer:
        save_tokenizer(folder, vocab_size)
    return folder


def save_llama(folder: Path, *, tied: bool = True, **options: Any) -> Path:
    """A random Llama model with its tokenizer; returns the folder."""
    return save_model(folder, "llama", tied=tied, **options)
