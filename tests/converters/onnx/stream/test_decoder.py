"""Our own graphs: quantized ones, damaged models, and what is left to others (see test_parity)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeadapt.artifact import Artifact
from edgeadapt.converters.base import ConversionRequest
from edgeadapt.converters.onnx.converter import OnnxConverter
from edgeadapt.converters.onnx.options import OnnxOptions
from edgeadapt.converters.onnx.stream.architecture import describe
from edgeadapt.converters.onnx.stream.blocks import BlockScheme, dequantize, quantize
from edgeadapt.converters.onnx.stream.families import unsupported
from edgeadapt.errors import CorruptFileError, UnsupportedError
from edgeadapt.safetensors_io import SafetensorsSource
from edgeadapt.weights import TensorInfo
from tests.onnx_folders import request
from tests.onnx_graphs import Graph, torch_logits
from tests.tiny import save_model

pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

LONGROPE = {
    "rope_type": "longrope", "short_factor": [1.0, 1.2, 1.5, 2.0, 2.2, 3.0, 4.0, 5.0],
    "long_factor": [1.1, 2.0, 4.0, 8.0, 12.0, 16.0, 20.0, 24.0], "rope_theta": 1e4,
    "partial_rotary_factor": 0.5, "original_max_position_embeddings": 128,
}  # fmt: skip
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"attention_bias": True, "mlp_bias": True, "tied": False}),
    "llama, tied": ("llama", {"tied": True}),
    "phi3, longrope": ("phi3", {"rope_parameters": LONGROPE, "tied": True, "hidden": 128,
                                "original_max_position_embeddings": 128}),
}  # fmt: skip


def saved(folder: Path, case: str) -> Path:
    family, options = CASES[case]
    return save_model(folder, family, **options)


def exported(model: Path, quantization: str = "fp32", **options: Any) -> Artifact:
    asked = OnnxOptions(exporter="stream", **options)
    wanted = request(model, quantization, onnx=asked)
    return OnnxConverter().convert(wanted, model.with_name(f"{model.name}-{quantization}"))


def test_longrope_within_its_first_context(tmp_path: Path) -> None:
    """As far as the first table goes, with and without a past; the head's rotary part is half."""
    model = saved(tmp_path / "model", "phi3, longrope")
    ids = np.random.default_rng(0).integers(3, 320, (4, 128))
    expected, graph = torch_logits(model, ids), Graph(exported(model).path)
    # the kernel takes several tokens after a cache only of one sequence
    for batch, cuts in ((1, ()), (1, (9, 68, 69, 127)), (4, ()), (4, range(124, 128))):
        error = np.abs(graph.logits(ids[:batch], cuts) - expected[:batch]).max()
        assert error < 1e-4, f"batch {batch}, cuts {cuts}"


def test_longrope_beyond_its_first_context(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "phi3, longrope")
    ids = np.random.default_rng(0).integers(3, 320, (2, 200))
    expected = torch_logits(model, ids)
    assert np.abs(Graph(exported(model).path).logits(ids) - expected).max() < 1e-4


class Rounded:
    """A source whose matrices are what a quantized graph multiplies by."""

    def __init__(self, folder: Path, scheme: BlockScheme, tied: bool) -> None:
        self._source, self._scheme, self._tied = SafetensorsSource(folder), scheme, tied
        self.config, self.tensors = self._source.config, self._source.tensors

    def rows(self, name: str, start: int, stop: int) -> Any:
        rows = self._source.rows(name, start, stop)
        if rows.ndim != 2:
            return rows
        wide = "embed_tokens" in name and not self._tied
        scheme = replace(self._scheme, bits=8) if wide else self._scheme
        return dequantize(*quantize(rows, scheme), rows.shape[1], scheme.bits)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("quantization", "algorithm", "symmetric", "block", "hidden"),
    [
        ("int4", "rtn", False, 16, 64),
        ("int4", "rtn", True, 32, 80),
        ("int4", "k_quant", None, 16, 64),
        ("int4", "rtn", False, 16, 80),  # five blocks a row: the last zero point stands alone
        ("int4", "k_quant", None, 32, 96),
        ("int8", "rtn", False, 32, 80),
        ("int8", "k_quant", None, 64, 64),
    ],
)
def test_quantized_computes_with_the_rounded_weights(
    quantization: str, algorithm: str, symmetric: bool | None, block: int, hidden: int,
    tied: bool, tmp_path: Path,
) -> None:  # fmt: skip
    model = save_model(tmp_path / "model", "llama", hidden=hidden, head_dim=16, tied=tied)
    options = {"algorithm": algorithm, "symmetric": symmetric, "block_size": block}
    made = exported(model, quantization, accuracy_level=1, **options)
    bits = 4 if quantization == "int4" else 8
    scheme = BlockScheme(bits, block, bool(symmetric), algorithm)  # type: ignore[arg-type]
    rounded = ConversionRequest(Rounded(model, scheme, tied), model, "fp32", "rounded", threads=1)
    expected = Graph(OnnxConverter().convert(rounded, tmp_path / "rounded").path)
    ids = np.random.default_rng(0).integers(3, 320, (2, 40))
    found = Graph(made.path).logits(ids)
    assert np.abs(found - expected.logits(ids)).max() < 1e-4
    assert np.abs(found - torch_logits(model, ids)).max() > 1e-3


def test_half_precision_weights(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "llama, tied")
    made = exported(model, "fp16")
    ids = np.random.default_rng(0).integers(3, 320, (1, 40))
    error = np.abs(Graph(made.path).logits(ids) - torch_logits(model, ids)).max()
    assert 0 < error < 2e-2
    whole = exported(model).path / "model.onnx.data"
    assert (made.path / "model.onnx.data").stat().st_size < 0.6 * whole.stat().st_size


def test_two_copies_of_a_tied_table_are_one(tmp_path: Path) -> None:
    """Embedding and head read the same bytes."""
    onnx = pytest.importorskip("onnx")
    made = exported(save_model(tmp_path / "model", "llama", tied=True), "int4")
    graph = onnx.load(made.path / "model.onnx", load_external_data=False).graph
    places = {t.name: {e.key: e.value for e in t.external_data} for t in graph.initializer}
    assert places["model.embed_tokens.weight_rows"] == places["lm_head.weight_Q8G32"]
    offsets = [int(place["offset"]) for place in places.values() if place]
    assert all(offset % 64 == 0 for offset in offsets)


def test_not_a_number(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "llama")
    source = SafetensorsSource(model)

    class Damaged:
        config, tensors = source.config, staticmethod(source.tensors)

        def rows(self, name: str, start: int, stop: int) -> Any:
            rows = source.rows(name, start, stop)
            if "layers.1.mlp.up_proj.weight" in name:
                rows[0, 0] = np.nan
            return rows

    wanted = ConversionRequest(Damaged(), model, "int4", "x", threads=1)
    with pytest.raises(CorruptFileError, match=r"layers\.1\.mlp\.up_proj.*NaN"):
        OnnxConverter().convert(wanted, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tensor_without_a_place(tmp_path: Path) -> None:
    source = SafetensorsSource(saved(tmp_path / "model", "llama"))
    extra = TensorInfo("model.layers.0.self_attn.sinks", (4,), "F32")

    class More:
        config, rows = source.config, staticmethod(source.rows)

        def tensors(self) -> dict[str, TensorInfo]:
            return source.tensors() | {extra.name: extra}

    with pytest.raises(UnsupportedError, match="sinks"):
        describe(More())


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"architectures": ["OlmoForCausalLM"]}, "OlmoForCausalLM"),
        ({"hidden_act": "relu2"}, "relu2"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "yarn"),
        ({"head_dim": 20}, "multiples of 16"),
        ({"layer_types": ["linear_attention"] * 2}, "linear_attention"),
    ],
)
def test_what_it_leaves_to_others(changes: dict[str, Any], why: str, tmp_path: Path) -> None:
    config = SafetensorsSource(saved(tmp_path / "model", "llama")).config
    assert unsupported(config) is None
    assert why in (unsupported(config | changes) or "")


@pytest.mark.parametrize("quantization", ["int4", "fp32"])
def test_plan_says_how_large_it_gets(quantization: str, tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "llama")
    planned = OnnxConverter().plan(request(model, quantization), tmp_path / "out").files["out"]
    folder = exported(model, quantization).path
    assert planned == sum(path.stat().st_size for path in folder.glob("model.onnx*"))
