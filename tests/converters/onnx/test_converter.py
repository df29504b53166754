"""ONNX export: what the folder holds, what it says of itself, and that failures leave nothing."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from edgeadapt.artifact import MANIFEST, open_artifact
from edgeadapt.converters.base import ConversionRequest
from edgeadapt.converters.onnx.builder import check_supported
from edgeadapt.converters.onnx.converter import OnnxConverter
from edgeadapt.converters.onnx.genai_config import end_of_turn, repair_genai_config, stop_ids
from edgeadapt.converters.onnx.options import QUANTIZATIONS, OnnxOptions, settle
from edgeadapt.converters.onnx.writers import get_writer
from edgeadapt.errors import CorruptFileError, InputError, RuntimeFailure, UnsupportedError
from edgeadapt.files import sha256_file
from edgeadapt.safetensors_io import SafetensorsSource
from edgeadapt.tokenizer import TOKENIZER_FILES, ModelTokenizer
from edgeadapt.weights import parameter_count
from tests.onnx_folders import exported, request
from tests.tiny import save_tokenizer

pytest.importorskip("onnxruntime_genai")


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_folder_is_complete_and_described(tiny_model: Path, quantization: str) -> None:
    artifact = exported(tiny_model, quantization)
    manifest = json.loads((artifact.path / MANIFEST).read_text())
    present = {path.name for path in artifact.path.iterdir()}
    wanted = {name for name in TOKENIZER_FILES if (tiny_model / name).is_file()}
    assert wanted | {"model.onnx", "model.onnx.data", "genai_config.json"} <= present
    assert set(manifest["files"]) == present - {MANIFEST}
    for name, entry in manifest["files"].items():
        assert entry["sha256"] == sha256_file(artifact.path / name)
    lineage = manifest["lineage"]
    made_by = "builder" if quantization == "int8-dynamic" else "stream"
    assert lineage["exporter"] == made_by
    assert lineage["writer" if made_by == "stream" else "builder"]["version"]
    settings = lineage["settings"]
    assert settings["shared_embeddings"] is True
    if quantization in ("int4", "int8"):
        assert {"block_size", "accuracy_level", "algorithm", "symmetric"} <= set(settings)
    assert open_artifact(artifact.path) == artifact
    assert not list(artifact.path.parent.glob(".*"))


def test_quantized_is_smaller(tiny_model: Path) -> None:
    sizes = [
        (exported(tiny_model, name).path / "model.onnx.data").stat().st_size
        for name in ("int4", "int8-dynamic", "int8", "fp16", "fp32")
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] * 3 < sizes[-1]


def test_stop_ids_come_from_the_model_not_the_builder(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(exported(tiny_model, "fp32").path, tmp_path / "copy")
    path = tmp_path / "copy" / "genai_config.json"
    record = json.loads(path.read_text())
    assert record["model"]["eos_token_id"] == [2]
    record["model"]["eos_token_id"] = [1, 2]  # what the builder makes of some tokenizers
    path.write_text(json.dumps(record))
    repair_genai_config(tmp_path / "copy", ModelTokenizer.from_folder(tiny_model), {})
    assert json.loads(path.read_text())["model"]["eos_token_id"] == [2]


def test_end_of_turn_is_what_the_template_writes(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 0}')
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["eos_token"] = "<|endoftext|>"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = ModelTokenizer.from_folder(tmp_path)
    assert end_of_turn(tokenizer) == 2
    assert stop_ids(tokenizer, {}) == {0, 2}


def test_template_without_end_of_turn_adds_nothing(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    template = "{% for message in messages %}{{ message.content }}\n{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(template)
    assert end_of_turn(ModelTokenizer.from_folder(tmp_path)) is None


class Changed:
    """A source with another config, or without some tensors."""

    def __init__(self, folder: Path, drop: str = "\0", **config: Any) -> None:
        self._source = SafetensorsSource(folder)
        self._drop, self._config = drop, config

    @property
    def config(self) -> dict[str, Any]:
        return self._source.config | self._config

    def tensors(self) -> dict[str, Any]:
        return {k: v for k, v in self._source.tensors().items() if self._drop not in k}

    def rows(self, name: str, start: int, stop: int) -> Any:
        return self._source.rows(name, start, stop)


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """Where an export that must fail is sent; nothing may be there afterwards."""
    yield tmp_path / "exports" / "model"
    assert not list((tmp_path / "exports").glob("*"))
    assert not list((tmp_path / "exports").glob(".*"))


def convert(
    source: Any, model: Path, out: Path, quantization: str = "int4", exporter: str | None = None
) -> None:
    options = OnnxOptions(exporter=exporter)
    request = ConversionRequest(source, model, quantization, "tiny", onnx=options)
    OnnxConverter().convert(request, out)


def test_unknown_quantization(tiny_model: Path, out: Path) -> None:
    with pytest.raises(InputError, match="int4"):
        convert(SafetensorsSource(tiny_model), tiny_model, out, "Q4_K_M")


@pytest.mark.parametrize("architecture", ["OlmoForCausalLM", "BertModel"])
def test_unknown_architecture(tiny_model: Path, out: Path, architecture: str) -> None:
    source = Changed(tiny_model, architectures=[architecture])
    with pytest.raises(UnsupportedError, match=f"{architecture}.*LlamaForCausalLM"):
        convert(source, tiny_model, out)


@pytest.mark.parametrize("rope", [{"rope_type": "yarn"}, {"type": "dynamic"}])
def test_unknown_rope(tiny_model: Path, out: Path, rope: dict[str, str]) -> None:
    with pytest.raises(UnsupportedError, match="rotary"):
        convert(Changed(tiny_model, rope_parameters=rope), tiny_model, out)


def test_rope_of_each_kind_of_layer_is_looked_at() -> None:
    rope = {"full_attention": {"rope_type": "yarn"}, "sliding_attention": {"rope_type": "default"}}
    with pytest.raises(UnsupportedError, match="yarn"):
        check_supported({"architectures": ["LlamaForCausalLM"], "rope_parameters": rope})


@pytest.mark.parametrize(
    ("exporter", "error"), [("stream", CorruptFileError), ("builder", RuntimeFailure)]
)
def test_missing_tensor_fails_instead_of_being_made_up(
    tiny_model: Path, out: Path, exporter: str, error: type[Exception]
) -> None:
    drop = "layers.1.mlp.up_proj"
    with pytest.raises(error, match=drop):
        convert(Changed(tiny_model, drop=drop), tiny_model, out, exporter=exporter)


def test_unknown_exporter(tiny_model: Path, out: Path) -> None:
    with pytest.raises(InputError, match=r"olive.*stream or builder"):
        convert(SafetensorsSource(tiny_model), tiny_model, out, exporter="olive")


def test_base_without_tokenizer(tiny_model: Path, tmp_path: Path, out: Path) -> None:
    source = SafetensorsSource(tiny_model)
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        convert(source, tmp_path, out)


def test_killed_builder(tiny_model: Path, out: Path) -> None:
    caught: list[BaseException] = []

    def work() -> None:
        try:
            convert(SafetensorsSource(tiny_model), tiny_model, out, exporter="builder")
        except RuntimeFailure as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    while thread.is_alive():
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error):  # it ended while it was looked at
                if any("converters.onnx.steps" in part for part in child.cmdline()):
                    child.kill()
        time.sleep(0.05)
    assert "SIGKILL" in str(caught[0])


@pytest.mark.parametrize(
    ("exporter", "quantization", "algorithm", "copies"),
    [
        ("builder", "fp32", None, 2),
        ("builder", "int4", "hqq", 2),
        ("builder", "int8-dynamic", None, 3),
        ("optimum", "fp32", None, 3),
        ("optimum", "int4", None, 3),
    ],
)
def test_disk_for_float32_copies(
    tiny_model: Path, exporter: str, quantization: str, algorithm: str | None, copies: int
) -> None:
    """As many as were seen at once in the partial folder of a larger model: source, graphs."""
    options = OnnxOptions(exporter=exporter, algorithm=algorithm)
    asked = request(tiny_model, quantization, onnx=options)
    settings = settle(quantization, options, tied=True)
    planned = get_writer(exporter).plan(asked, settings, Path("out"))
    assert planned is not None
    weights = parameter_count(asked.source)
    assert planned.disk >= copies * 4 * weights
    if exporter == "optimum" and quantization == "int4":  # the embedding keeps its floats
        assert planned.output > 4 * 320 * 64 + weights // 2


def test_existing_output_is_kept(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("mine")
    with pytest.raises(InputError, match="exists"):
        convert(SafetensorsSource(tiny_model), tiny_model, tmp_path / "there")
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["file"]
