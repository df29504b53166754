"""Each line of the table of limits: true up to the context it names, and seen past it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from edgeadapt.converters.gguf.limits import EXACT_CONTEXT, RULES, exact_context, limits_of
from edgeadapt.errors import UnsupportedError
from edgeadapt.gguf_io import GgufFile
from tests.converters.gguf.test_families import convert, difference
from tests.tiny import FAMILIES, save_model

pytest.importorskip("llama_cpp")

SLIDING, FULL = "sliding_attention", "full_attention"
ONE_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}

UP_TO: dict[str, tuple[str, str, dict[str, Any]]] = {
    # Rule, family and config; every one is exact up to `EXACT` tokens.
    "mistral": ("sliding window", "mistral", {"sliding_window": 40}),
    "mixtral": ("sliding window", "mixtral", {"sliding_window": 40}),
    "phi3": ("sliding window", "phi3", {"sliding_window": 40}),
    "qwen2": (
        "sliding window of some layers",
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 40, "layer_types": [FULL, SLIDING]},
    ),
    "qwen3": (
        "sliding window of some layers",
        "qwen3",
        {"use_sliding_window": True, "sliding_window": 40, "layer_types": [SLIDING, FULL]},
    ),
    "gemma2": (
        "order of layers",
        "gemma2",
        {"sliding_window": 40, "layer_types": [FULL, SLIDING]},
    ),
    "gemma3": (
        "order of layers",
        "gemma3",
        {
            "sliding_window": 40, "num_hidden_layers": 2, "layer_types": [FULL, SLIDING],
            "rope_parameters": {FULL: ONE_ROPE, SLIDING: ONE_ROPE},
        },
    ),
    "dynamic": (
        "dynamic RoPE",
        "llama",
        {"rope_parameters": DYNAMIC, "max_position_embeddings": 40},
    ),
    "longrope": (
        "LongRoPE",
        "phi3",
        {
            "original_max_position_embeddings": 256, "max_position_embeddings": 512,
            "rope_parameters": {
                "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 1.0,
                "short_factor": [1.0] * 8, "long_factor": [4.0] * 8,
                "original_max_position_embeddings": 256,
            },
        },
    ),
}  # fmt: skip

EXACT = dict.fromkeys(UP_TO, 40) | {"longrope": 256}
"""llama.cpp picks LongRoPE's factors by the context's size, which it rounds up to 256."""

NEVER: list[tuple[str, str, dict[str, Any]]] = [
    ("scale of attention", "gemma2", {"query_pre_attn_scalar": 64}),
    ("scale of attention", "gemma3", {"query_pre_attn_scalar": 64}),
    (
        "order of layers",
        "gemma3",
        {"num_hidden_layers": 2, "layer_types": [FULL, SLIDING]},
    ),
    ("layers without RoPE", "smollm3", {"no_rope_layers": [1, 0, 1, 1, 1]}),
    ("size of a head", "qwen2", {"head_dim": 32}),
    ("part of a head", "llama", {"partial_rotary_factor": 0.5}),
    ("activation", "llama", {"hidden_act": "gelu"}),
    ("activation", "gemma2", {"hidden_activation": "silu"}),
    ("weights of experts", "qwen3moe", {"norm_topk_prob": False}),
    ("layers without experts", "qwen3moe", {"mlp_only_layers": [0]}),
    ("soft cap on attention", "gemma2", {"attn_logit_softcapping": None}),
    ("soft cap on attention", "gemma3", {"attn_logit_softcapping": 50.0}),
    ("attention to later tokens", "gemma3", {"use_bidirectional_attention": True}),
    ("head of its own", "gemma2", {"tie_word_embeddings": False}),
    ("head tied to the embedding", "olmo2", {"tie_word_embeddings": True}),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One plain model of each family, not to be changed."""
    root = tmp_path_factory.mktemp("limits")
    for family in {family for _, family, _ in NEVER}:
        save_model(root / family, family)
    return root


def test_every_rule_has_a_test() -> None:
    tested = {rule for rule, *_ in UP_TO.values()} | {rule for rule, *_ in NEVER}
    assert {rule.name for rule in RULES} == tested


@pytest.mark.parametrize("case", UP_TO)
def test_exact_up_to_the_context_it_names(
    case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rule, family, options = UP_TO[case]
    folder = save_model(tmp_path / "m", family, **options)
    with caplog.at_level(logging.WARNING):
        path = convert(folder, tmp_path / "m.gguf")
    config = json.loads((folder / "config.json").read_text())
    exact = EXACT[case]
    ids = [3 + (7 * i) % 300 for i in range(2 * exact)]
    assert [(limit.name, limit.exact_context) for limit in limits_of(config)] == [(rule, exact)]
    assert GgufFile(path).metadata[EXACT_CONTEXT] == exact
    assert f"{exact} tokens" in caplog.text
    close = 2e-3 if family.startswith("gemma") else 1e-3
    assert difference(folder, path, ids[:exact]) < close
    if case == "longrope":  # room for more is enough, the text need not be long
        assert difference(folder, path, ids[:exact], room=2 * exact) > 10 * close
    else:
        assert difference(folder, path, ids) > 10 * close


@pytest.mark.parametrize(("rule", "family", "options"), NEVER)
def test_what_is_never_exact_is_refused(
    rule: str, family: str, options: dict[str, Any], models: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    for path in (models / family).iterdir():
        (folder / path.name).symlink_to(path)
    config = json.loads((folder / "config.json").read_text()) | options
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))
    assert [limit.name for limit in limits_of(config)] == [rule]
    assert exact_context(config) == 0
    with pytest.raises(UnsupportedError, match=r"llama\.cpp"):
        convert(folder, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_models_have_no_limit(family: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "m", family, tokenizer=False)
    assert exact_context(json.loads((folder / "config.json").read_text())) is None


def test_a_window_longer_than_the_context_is_none() -> None:
    config = {
        "architectures": ["MistralForCausalLM"], "num_hidden_layers": 2, "num_attention_heads": 4,
        "hidden_size": 64, "vocab_size": 320, "max_position_embeddings": 256,
        "sliding_window": 4096,
    }  # fmt: skip
    assert exact_context(config) is None
    assert exact_context(config | {"max_position_embeddings": 8192}) == 4096
