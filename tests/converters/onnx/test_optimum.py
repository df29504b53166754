"""The second exporter, in its own environment: `edgeadapt setup optimum` makes it, CI does so."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from edgeadapt.artifact import Artifact
from edgeadapt.converters.onnx.converter import OnnxConverter
from edgeadapt.converters.onnx.optimum import (
    READY,
    environment,
    for_transformers_4,
    installed,
)
from edgeadapt.converters.onnx.options import OnnxOptions
from edgeadapt.errors import CorruptFileError, MissingSetupError, RuntimeFailure, UnsupportedError
from edgeadapt.runtimes import SessionSettings, get_runtime
from tests.onnx_folders import request
from tests.onnx_graphs import Graph, torch_logits
from tests.tiny import save_model

pytest.importorskip("onnxruntime")

# Asked before a test gets a cache of its own.
ENVIRONMENT = environment()
needs_optimum = pytest.mark.skipif(
    installed() is None, reason="optimum's environment is not there: edgeadapt setup optimum"
)
TEXT = np.random.default_rng(0).integers(3, 320, (4, 256))
CUTS = (1, 100, 101, 200)


@pytest.fixture
def with_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEADAPT_OPTIMUM", str(ENVIRONMENT))


@pytest.fixture(scope="module")
def olmo2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family that the builder gets wrong; rows are whole numbers of block pairs."""
    return save_model(tmp_path_factory.mktemp("olmo2") / "model", "olmo2", intermediate=128)


def convert(model: Path, out: Path, quantization: str, **options: object) -> Artifact:
    chosen = OnnxOptions(exporter="optimum", **options)  # type: ignore[arg-type]
    return OnnxConverter().convert(request(model, quantization, onnx=chosen), out)


def test_not_installed_names_the_command(
    olmo2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEADAPT_OPTIMUM", str(tmp_path / "nothing"))
    with pytest.raises(MissingSetupError, match=r"type: edgeadapt setup optimum$"):
        convert(olmo2, tmp_path / "out", "fp32")
    assert not (tmp_path / "out").exists()


def test_builder_points_to_optimum(olmo2: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"Olmo2ForCausalLM.*--exporter optimum"):
        OnnxConverter().convert(request(olmo2, "fp32"), tmp_path / "out")


@needs_optimum
@pytest.mark.usefixtures("with_optimum")
def test_fp32_equals_torch(olmo2: Path, tmp_path: Path) -> None:
    artifact = convert(olmo2, tmp_path / "onnx", "fp32")
    assert artifact.lineage["exporter"] == "optimum"
    assert artifact.lineage["optimum"]["optimum-onnx"]
    expected = torch_logits(olmo2, TEXT)
    graph = Graph(artifact.path)
    for batch in (1, 4):
        for cuts in ((), CUTS):
            assert np.abs(graph.logits(TEXT[:batch], cuts) - expected[:batch]).max() < 1e-4
    for engine in ("onnxruntime", "ort-genai"):
        session = get_runtime(engine).load(artifact, SessionSettings(threads=1, context=256))
        ids = TEXT[0].tolist()
        assert np.abs(session.all_logits(ids) - expected[0]).max() < 1e-4
        session.reset()
        for start, stop in zip((0, *CUTS), (*CUTS, 256), strict=True):
            session.forward(ids[start:stop])
            assert np.abs(session.last_logits() - expected[0, stop - 1]).max() < 1e-4
        session.close()


@needs_optimum
@pytest.mark.usefixtures("with_optimum")
def test_damage_is_told(olmo2: Path, tmp_path: Path) -> None:
    artifact = convert(olmo2, tmp_path / "onnx", "fp32")
    data = artifact.path / "model.onnx.data"
    whole = data.stat().st_size
    os.truncate(data, whole - 100)
    for engine in ("onnxruntime", "ort-genai"):
        with pytest.raises(CorruptFileError, match=f"model.onnx.data has .*{whole:,}"):
            get_runtime(engine).load(artifact, SessionSettings(threads=1, context=256))


@needs_optimum
@pytest.mark.usefixtures("with_optimum")
def test_quantized_is_smaller_and_near(olmo2: Path, tmp_path: Path) -> None:
    expected = torch_logits(olmo2, TEXT[:1])
    size = sum(path.stat().st_size for path in (olmo2).glob("*.safetensors"))
    for name, quantization, options, most in (
        ("rtn", "int4", {}, 0.5),
        ("hqq", "int4", {"algorithm": "hqq_mixed"}, 0.5),
        ("dynamic", "int8-dynamic", {"preset": "avx2"}, 0.2),
    ):
        artifact = convert(olmo2, tmp_path / name, quantization, **options)
        assert (artifact.path / "model.onnx.data").stat().st_size < 0.75 * size
        error = np.abs(Graph(artifact.path).logits(TEXT[:1]) - expected).mean()
        assert 0 < error < most * expected.std(), name


@needs_optimum
@pytest.mark.usefixtures("with_optimum")
def test_failure_of_the_exporter_leaves_nothing(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", "smollm3")
    config = model / "config.json"
    config.write_text(config.read_text().replace('"smollm3"', '"no-such-model"'))
    with pytest.raises(RuntimeFailure, match="optimum's exporter failed"):
        convert(model, tmp_path / "out" / "onnx", "fp32")
    assert not list((tmp_path / "out").glob("*"))


def test_config_in_older_words() -> None:
    flat = {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "hidden_size": 8}
    assert for_transformers_4(flat) == {"hidden_size": 8, "rope_theta": 5e5}
    scaled = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}
    assert for_transformers_4(scaled) == {
        "rope_theta": 1e4,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    }
    both = {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        }
    }
    assert for_transformers_4(both) == {"rope_theta": 1e6, "rope_local_base_freq": 1e4}


def test_environment_without_its_stamp_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEADAPT_OPTIMUM", str(tmp_path))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    assert installed() is None
    (tmp_path / READY).write_text('{"optimum": "2.1.0"}')
    assert installed() == {"optimum": "2.1.0"}
    assert Path(os.environ["EDGEADAPT_OPTIMUM"]) == environment()
