"""Float32 graphs of both exporters against torch: every family, 256 positions, batches, pasts.

Sliding windows are shorter than the text, and models have every kind of layer of their family.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeadapt.artifact import Artifact, open_artifact
from edgeadapt.runtimes import SessionSettings, get_runtime
from tests.onnx_folders import exported
from tests.onnx_graphs import Graph, torch_logits
from tests.tiny import save_model

pytest.importorskip("onnxruntime_genai")

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64, "rope_theta": 5e5,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4,
    "short_factor": [1.0 + 0.1 * i for i in range(8)],
    "long_factor": [1.5 + 0.4 * i for i in range(8)],
    "original_max_position_embeddings": 256,
}  # fmt: skip
LATE_WINDOW = {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 24}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"attention_bias": True, "mlp_bias": True, "tied": False}),
    "llama-tied": ("llama", {"tied": True}),
    "llama-3": ("llama", {"rope_parameters": LLAMA3, "attention_bias": True, "tied": True}),
    "llama-linear": ("llama", {"rope_parameters": LINEAR, "kv_heads": 4}),
    "mistral": ("mistral", {}),
    "mistral-window": ("mistral", {"sliding_window": 24, "head_dim": 32}),
    "qwen2": ("qwen2", {}),
    "qwen2-window": ("qwen2", {"layers": 3, **LATE_WINDOW}),
    "qwen3": ("qwen3", {}),
    "qwen3-window": ("qwen3", {"layers": 3, **LATE_WINDOW}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {"layers": 3}),
    "gemma3": ("gemma3", {"final_logit_softcapping": 20.0}),
    "phi3": ("phi3", {}),
    "phi3-window": ("phi3", {"sliding_window": 24}),
    "phi3-longrope": (
        "phi3", {"rope_parameters": LONGROPE, "max_position_embeddings": 1024, "tied": True}
    ),
    "granite": ("granite", {}),
}  # fmt: skip
BUILT = (
    "llama", "llama-3", "mistral-window", "qwen2-window", "qwen3", "gemma", "gemma2", "gemma3",
    "phi3-window", "phi3-longrope", "granite",
)  # fmt: skip
"""What the builder is asked for, at five seconds each: every family, and every kind of layer."""
GRANITE = "granite"
"""Only the builder knows it."""
FAST = "gemma3"
"""Has all there is: both kinds of layers, windows, two rotary bases, norms of every sort."""
POSITIONS = 256
CUTS = (1, 100, 101, 102, 200)
STEPS = tuple(range(200, POSITIONS))
"""One token at a time: onnxruntime's CPU attention takes no more of a batch that has a past."""


@pytest.mark.parametrize(
    ("exporter", "name"),
    [
        *(pytest.param("stream", name) for name in CASES if name != GRANITE),
        *(
            pytest.param("builder", name, marks=() if name == FAST else pytest.mark.e2e)
            for name in BUILT
        ),
    ],
)
def test_graph_equals_torch(tmp_path: Path, exporter: str, name: str) -> None:
    family, options = CASES[name]
    model = save_model(tmp_path / "model", family, **options)
    artifact = exported(model, "fp32", exporter)
    assert artifact.lineage["exporter"] == exporter
    graph = Graph(artifact.path)
    ids = np.random.default_rng(0).integers(3, 320, (4, POSITIONS))
    expected = torch_logits(model, ids)
    assert np.abs(expected).max() > 0.5, "the logits say too little"
    for batch, cuts in ((1, ()), (1, CUTS), (4, ()), (4, STEPS)):
        error = np.abs(graph.logits(ids[:batch], cuts) - expected[:batch]).max()
        assert error < 1e-4, f"batch {batch}, cuts {cuts}"
    _check_engines(artifact, ids[0].tolist(), expected[0])


def test_every_family_is_asked_of_both() -> None:
    """The families that the product promises, less variants."""
    promised = {"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"}
    for names in (CASES, BUILT):
        assert promised <= {CASES[name][0] for name in names}


def _check_engines(artifact: Artifact, ids: list[int], expected: np.ndarray) -> None:
    """Both engines, whose KV cache is one buffer as long as the context."""
    for name in ("onnxruntime", "ort-genai"):
        session = get_runtime(name).load(artifact, SessionSettings(threads=1, context=POSITIONS))
        assert np.abs(session.all_logits(ids) - expected).max() < 1e-4, name
        session.reset()
        for start, stop in zip((0, *CUTS), (*CUTS, POSITIONS), strict=True):
            session.forward(ids[start:stop])
            assert np.abs(session.last_logits() - expected[stop - 1]).max() < 1e-4, name
        session.close()


@pytest.mark.parametrize(
    ("exporter", "name"),
    [
        *(
            pytest.param("stream", name)
            for name, case in CASES.items()
            if name == case[0] != GRANITE
        ),
        *(pytest.param("builder", name, marks=pytest.mark.e2e) for name in BUILT),
    ],
)
def test_int4_of_every_family_runs_on_both_engines(
    tmp_path: Path, exporter: str, name: str
) -> None:
    """Near torch, alike in both, and alike with and without a past."""
    family, options = CASES[name]
    model = save_model(tmp_path / "model", family, **options)
    artifact = exported(model, "int4", exporter)
    ids = np.random.default_rng(0).integers(3, 320, 60).tolist()
    expected = torch_logits(model, np.array([ids]))[0]
    found = []
    for engine in ("onnxruntime", "ort-genai"):
        session = get_runtime(engine).load(artifact, SessionSettings(threads=1, context=64))
        found.append(session.all_logits(ids))
        session.reset()
        for start, stop in ((0, 40), (40, 41), (41, 60)):
            session.forward(ids[start:stop])
            assert np.abs(session.last_logits() - found[-1][stop - 1]).max() < 0.1 * expected.std()
        session.close()
    assert np.abs(found[0] - found[1]).max() < 1e-3
    assert 0 < np.abs(found[0] - expected).mean() < 0.5 * expected.std()


def test_windows_and_layers_are_there(tmp_path: Path) -> None:
    """What the cases above rest on: the tiny models do have windows and mixed layers."""
    config = open_artifact(save_model(tmp_path / "model", "gemma3")).path / "config.json"
    text = config.read_text()
    assert '"sliding_attention"' in text
    assert '"full_attention"' in text
    assert '"sliding_window": 24' in text
