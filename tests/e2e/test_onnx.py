"""ONNX of the built-in model: equal to torch, answering and stopping."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from peft import LoraConfig

from edgeadapt.artifact import Artifact, open_artifact
from edgeadapt.base_model import import_base
from edgeadapt.export import export, open_model
from edgeadapt.export_separate import export_with_adapters
from edgeadapt.runtimes import SessionSettings, get_runtime
from tests.adapters.test_merged import save_adapter
from tests.onnx_folders import exported
from tests.onnx_graphs import Graph, torch_logits

pytestmark = pytest.mark.e2e

ENGINES = ("ort-genai", "onnxruntime")
SETTINGS = SessionSettings(threads=2, context=512)
CUTS = (1, 200, 201)
STEPS = tuple(range(250, 256))
"""One token at a time: onnxruntime's CPU attention takes no more of a batch that has a past."""
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return import_base("default", tmp_path_factory.mktemp("base") / "model")


@pytest.mark.parametrize("engine", ENGINES)
def test_int4_answers_and_stops(base: Path, engine: str) -> None:
    artifact = exported(base, "int4")
    session = get_runtime(engine).load(artifact, SessionSettings(threads=2, context=512))
    ids = session.encode(session.render(QUESTION))
    answer = list(session.generate(ids, max_tokens=100))
    text = b"".join(session.token_bytes(token) for token in answer).decode()
    assert "Paris" in text
    assert len(answer) < 100, f"did not stop: {text}"
    assert session.position == len(ids) + len(answer)


def test_int4_is_a_quarter_of_float32(base: Path) -> None:
    assert exported(base, "int4").size_bytes * 4 < exported(base, "fp32").size_bytes


def test_fp32_equals_torch(base: Path) -> None:
    """256 positions, alone and four at a time, with and without a past, in both engines."""
    artifact = exported(base, "fp32")
    reference = get_runtime("torch").load(open_artifact(base), SETTINGS)
    text = reference.encode(reference.render(QUESTION) + (np.ndarray.__doc__ or ""))
    ids = np.array([text[start : start + 256] for start in (0, 100, 200, 300)])
    expected = torch_logits(base, ids)
    graph = Graph(artifact.path)
    for batch, cuts in ((1, ()), (1, CUTS), (4, ()), (4, STEPS)):
        assert np.abs(graph.logits(ids[:batch], cuts) - expected[:batch]).max() < 1e-3
    del graph
    for engine in ENGINES:
        session = get_runtime(engine).load(artifact, SETTINGS)
        assert np.abs(session.all_logits(text[:256]) - expected[0]).max() < 1e-3
        session.reset()
        for start, stop in zip((0, *CUTS), (*CUTS, 256), strict=True):
            session.forward(text[start:stop])
            assert np.abs(session.last_logits() - expected[0, stop - 1]).max() < 1e-3
        session.close()


@pytest.fixture(scope="module")
def graphs(base: Path) -> dict[str, Artifact]:
    """The base's graph with two adapters beside it, and each of them merged."""
    configs = {
        "all": LoraConfig(r=16, lora_alpha=0.5, target_modules="all-linear"),
        "few": LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
    }
    root = base.parent
    adapters = {name: save_adapter(base, root / name, c) for name, c in configs.items()}
    apart = export_with_adapters(str(base), list(adapters.values()), "fp32", root / "apart")
    merged = {
        name: export(open_model(str(base), adapter), "onnx", "fp32", root / f"merged-{name}")
        for name, adapter in adapters.items()
    }
    return {"apart": apart} | merged


@pytest.mark.parametrize("engine", ENGINES)
def test_switched_adapter_equals_merged(graphs: dict[str, Artifact], engine: str) -> None:
    settings = SessionSettings(threads=2, context=512)
    session = get_runtime(engine).load(graphs["apart"], settings)
    ids = session.encode(session.render(QUESTION))
    untouched = session.all_logits(ids)
    for name in ("all", "few"):
        expected = get_runtime(engine).load(graphs[name], settings).all_logits(ids)
        session.use_adapter(graphs["apart"].path / "adapters" / f"{name}.onnx_adapter")
        assert np.abs(expected - untouched).max() > 0.1
        assert np.abs(session.all_logits(ids) - expected).max() < 1e-3
    session.use_adapter(None)
    np.testing.assert_array_equal(session.all_logits(ids), untouched)


def test_genai_tokenizer_gives_the_same_ids(base: Path) -> None:
    """Apps that use onnxruntime-genai's own tokenizer see what edgeadapt measured."""
    og = pytest.importorskip("onnxruntime_genai")
    artifact = exported(base, "int4")
    session = get_runtime("onnxruntime").load(artifact, SessionSettings(threads=1, context=64))
    theirs = og.Tokenizer(og.Model(str(artifact.path)))
    for text in (session.render(QUESTION), "def f(x):\n\treturn x + 12345", "Grüße, 日本語 🙂"):
        assert theirs.encode(text).tolist() == session.encode(text)
