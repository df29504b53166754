"""What is done to the builder's graphs: HQQ, float16 attention, shared 8-bit tables, stop ids."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeadapt.artifact import Artifact, open_artifact
from edgeadapt.console import log
from edgeadapt.converters.onnx.builder import BuilderWriter
from edgeadapt.converters.onnx.options import OnnxOptions, settle
from edgeadapt.converters.onnx.quantize import quantize_dynamically
from edgeadapt.export import export, open_model
from edgeadapt.runtimes import SessionSettings, get_runtime
from tests.onnx_folders import exported, request
from tests.tiny import save_model

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime_genai")

IDS = np.random.default_rng(0).integers(3, 320, 150).tolist()
SETTINGS = SessionSettings(threads=1, context=200)


def graph_of(artifact: Artifact) -> Any:
    return onnx.load(artifact.path / "model.onnx", load_external_data=False).graph


def operators(artifact: Artifact) -> Counter[str]:
    return Counter(node.op_type for node in graph_of(artifact).node)


def relative_error(artifact: Artifact, model: Path) -> float:
    """Mean error of the logits in their standard deviations; the same in both engines."""
    wanted = get_runtime("torch").load(open_artifact(model), SETTINGS).all_logits(IDS)
    errors = []
    for engine in ("onnxruntime", "ort-genai"):
        session = get_runtime(engine).load(artifact, SETTINGS)
        errors.append(np.abs(session.all_logits(IDS) - wanted).mean() / wanted.std())
        session.close()
    assert abs(errors[0] - errors[1]) < 1e-3
    return float(errors[0])


def test_hqq_takes_every_layer_and_leaves_the_head(tmp_path: Path) -> None:
    # rows of an even number of blocks: HQQ packs no others
    model = save_model(tmp_path / "model", "llama", intermediate=128, tied=True)
    artifact = exported(model, "int4", "builder", "hqq")
    assert artifact.lineage["quantizer"]["name"] == "onnxruntime"
    counts = operators(artifact)
    assert counts["MatMul"] == 0 and counts["MatMulNBits"] == 2 * 7 + 1
    assert counts["GatherBlockQuantized"] == 1  # the embedding reads the head
    kinds = {tensor.name: tensor.data_type for tensor in graph_of(artifact).initializer}
    for node in graph_of(artifact).node:
        if node.op_type != "MatMulNBits":
            continue
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert (attributes["bits"], attributes["accuracy_level"]) == (4, 4)
        # HQQ's zero points are fractions, the head's are not, or there are none
        fractions = len(node.input) > 3 and kinds[node.input[3]] == onnx.TensorProto.FLOAT
        assert fractions == ("lm_head" not in node.name)
    assert 0 < relative_error(artifact, model) < 0.5


def test_float16_attention_is_fused_and_its_cache_is_float16(tiny_model: Path) -> None:
    artifact = exported(tiny_model, "fp16", "builder")
    counts = operators(artifact)
    assert counts["GroupQueryAttention"] == 2 and counts["Softmax"] == 0
    inputs = {x.name: x.type.tensor_type.elem_type for x in graph_of(artifact).input}
    assert inputs["past_key_values.0.key"] == onnx.TensorProto.FLOAT16
    assert 0 < relative_error(artifact, tiny_model) < 0.01


def test_embedding_reads_the_8_bit_head(tiny_model: Path) -> None:
    artifact = exported(tiny_model, "int8", "builder")
    counts = operators(artifact)
    assert counts["GatherBlockQuantized"] == 1 and counts["Gather"] <= 1  # of the mask's shape
    tables = [x for x in graph_of(artifact).initializer if 320 in x.dims]
    assert {x.data_type for x in tables if len(x.dims) > 1 and max(x.dims[1:]) >= 32} == {
        onnx.TensorProto.UINT8
    }, "a table of floats beside the head"
    own = exported(tiny_model, "int8").path / "model.onnx.data"
    size = (artifact.path / "model.onnx.data").stat().st_size
    assert size < 1.05 * own.stat().st_size
    assert 0 < relative_error(artifact, tiny_model) < 0.05


def test_zero_points_left_out_are_told(
    tiny_model: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The tiny model's rows of 96 are three blocks of 32, which onnxruntime cannot pack."""
    monkeypatch.setattr(log, "propagate", True)
    asked = OnnxOptions(exporter="builder", algorithm="rtn")
    artifact = export(open_model(str(tiny_model)), "onnx", "int4", tmp_path / "told", onnx=asked)
    assert artifact.lineage["settings"]["symmetric"] is True
    told = artifact.lineage["zero_points"]
    assert "exporter builder" in told and "odd number of blocks of 32" in told
    assert {r.message for r in caplog.records if r.levelname == "WARNING"} == {told}
    assert all(len(n.input) == 3 for n in graph_of(artifact).node if n.op_type == "MatMulNBits")


@pytest.mark.parametrize(
    ("preset", "kind"), [("arm64", "INT8"), ("avx2", "UINT8"), ("avx512_vnni", "INT8")]
)
def test_instruction_sets(tiny_model: Path, tmp_path: Path, preset: str, kind: str) -> None:
    """Signed weights where the products take them, unsigned ones for AVX2."""
    made = exported(tiny_model, "fp32", "builder")
    shutil.copytree(made.path, tmp_path / "copy")
    quantize_dynamically(tmp_path / "copy", preset)
    artifact = Artifact(tmp_path / "copy", "onnx", "int8-dynamic")
    assert operators(artifact)["MatMulInteger"] == 2 * 7 + 1 - 2 * 2  # q, k and v are one product
    weights = [x for x in graph_of(artifact).initializer if x.name.endswith("_quantized")]
    assert {x.data_type for x in weights} == {getattr(onnx.TensorProto, kind)}
    assert 0 < relative_error(artifact, tiny_model) < 0.2


def test_stop_ids_are_the_models_own(tmp_path: Path) -> None:
    """The builder also stops at what config.json names, here the opening of a turn, id 1."""
    model = save_model(tmp_path / "model", "llama", tied=True, eos_token_id=1)
    (model / "generation_config.json").unlink()  # which would have the builder forget the 1
    asked = request(model, "fp32", onnx=OnnxOptions(exporter="builder"))
    (tmp_path / "raw").mkdir()
    BuilderWriter().write(asked, settle("fp32", OnnxOptions(), tied=True), tmp_path / "raw")
    raw = json.loads((tmp_path / "raw" / "genai_config.json").read_text())["model"]
    assert raw["eos_token_id"] == [2, 1], "the builder was mended: the repair can go"
    artifact = exported(model, "fp32", "builder")
    made = json.loads((artifact.path / "genai_config.json").read_text())["model"]
    assert made["eos_token_id"] == [2]
    for engine in ("onnxruntime", "ort-genai"):
        session = get_runtime(engine).load(artifact, SETTINGS)
        assert session.stop_ids == {2}
        session.close()
