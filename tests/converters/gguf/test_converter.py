"""Files equal llama.cpp's own quantization byte for byte, and its logits equal torch's."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeadapt.artifact import open_artifact
from edgeadapt.converters.base import ConversionRequest
from edgeadapt.converters.gguf.converter import GgufConverter
from edgeadapt.converters.gguf.mixes import MIXES
from edgeadapt.errors import CorruptFileError, EdgeAdaptError, InputError, UnsupportedError
from edgeadapt.safetensors_io import SafetensorsSource
from edgeadapt.weights import Float32Array, TensorInfo
from tests.tiny import save_llama

llama_cpp = pytest.importorskip("llama_cpp")

QUIET = llama_cpp.llama_log_callback(lambda *_: None)  # llama.cpp keeps the pointer for good
llama_cpp.llama_log_set(QUIET, ctypes.c_void_p(0))

NEEDS_IMPORTANCE = {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "Q2_K_S"}
NEEDS_IMPORTANCE |= {"IQ3_XS"}  # its attn_q and attn_k are IQ3_XXS


def convert(folder: Path, out: Path, quantization: str, threads: int = 2) -> Path:
    request = ConversionRequest(
        SafetensorsSource(folder), folder, quantization, "tiny", threads=threads
    )
    return GgufConverter().convert(request, out).path


def tensors_of(path: Path) -> dict[str, tuple[str, bytes]]:
    from gguf import GGUFReader

    return {t.name: (t.tensor_type.name, t.data.tobytes()) for t in GGUFReader(path).tensors}


def quantize_with_llama_cpp(source: Path, out: Path, ftype: int) -> None:
    """What the llama-quantize program does, through the same library function."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = ftype
    params.nthread = 2
    code = llama_cpp.llama_model_quantize(
        str(source).encode(), str(out).encode(), ctypes.byref(params)
    )
    assert code == 0


SHAPES: dict[str, dict[str, Any]] = {
    # 16 layers: every "first eighth, last eighth, every third" rule sees both answers.
    "tied": {"layers": 16, "hidden": 256, "intermediate": 256, "heads": 4, "kv_heads": 2},
    "untied-gqa8": {
        "layers": 4, "hidden": 256, "intermediate": 256, "heads": 8, "kv_heads": 1, "tied": False,
    },
    "no-super-blocks": {"layers": 4, "hidden": 96, "intermediate": 160, "heads": 3, "kv_heads": 3},
    "odd": {"layers": 2, "hidden": 48, "intermediate": 80, "heads": 2, "kv_heads": 1},
}  # fmt: skip


SLOW = {"IQ3_S", "IQ3_M", "IQ4_NL", "IQ4_XS"}  # a search in ggml: seconds per million weights


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for shape, options in SHAPES.items():
        save_llama(folder / shape, **options)
        convert(folder / shape, folder / f"{shape}.gguf", "F32")
    return folder


@pytest.mark.parametrize(
    ("shape", "mix"),
    [
        (shape, mix)
        for shape in SHAPES
        for mix in MIXES
        if mix not in NEEDS_IMPORTANCE and not (shape == "tied" and mix in SLOW)
    ],
)
def test_blocks_equal_llama_quantize(shape: str, mix: str, models: Path, tmp_path: Path) -> None:
    ours = convert(models / shape, tmp_path / "ours.gguf", mix)
    quantize_with_llama_cpp(models / f"{shape}.gguf", tmp_path / "theirs.gguf", int(MIXES[mix][0]))
    left, right = tensors_of(ours), tensors_of(tmp_path / "theirs.gguf")
    assert {n: kind for n, (kind, _) in left.items()} == {n: kind for n, (kind, _) in right.items()}
    for name in left:
        assert left[name] == right[name], name


@pytest.mark.parametrize("mix", sorted(NEEDS_IMPORTANCE))
def test_types_that_need_an_importance_matrix_are_refused(
    mix: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    folder = save_llama(tmp_path / "m", hidden=256, intermediate=256)
    with pytest.raises(InputError, match="importance matrix"):
        convert(folder, tmp_path / "out.gguf", mix)
    assert not (tmp_path / "out.gguf").exists()


def logits(path: Path, ids: list[int]) -> Float32Array:
    engine = llama_cpp.Llama(
        str(path), n_ctx=256, logits_all=True, verbose=False, type_k=0, type_v=0, flash_attn=False
    )
    engine.eval(ids)
    scores = np.array(engine.scores[: len(ids)], dtype=np.float32)
    engine.close()
    return scores


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tied": False},
        {"attention_bias": True},
        {"head_dim": 32},
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}},
    ],
)
def test_float32_logits_equal_torch(options: dict[str, Any], tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = save_llama(tmp_path / "m", **options)
    path = convert(folder, tmp_path / "m.gguf", "F32")
    ids = [3 + (7 * i) % 300 for i in range(120)]
    reference = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = reference(input_ids=torch.tensor([ids])).logits[0].numpy()
    assert np.abs(logits(path, ids) - expected).max() < 1e-3


def test_the_file_does_not_depend_on_the_threads(tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "m", hidden=256, intermediate=512)
    one = convert(folder, tmp_path / "1.gguf", "Q4_K_M", threads=1)
    four = convert(folder, tmp_path / "4.gguf", "Q4_K_M", threads=4)
    assert one.read_bytes() == four.read_bytes()


def test_vocabulary_and_template_survive(tmp_path: Path) -> None:
    from gguf import GGUFReader

    from edgeadapt.tokenizer import ModelTokenizer

    folder = save_llama(tmp_path / "m")
    path = convert(folder, tmp_path / "m.gguf", "F16")
    tokenizer = ModelTokenizer.from_folder(folder)
    fields = GGUFReader(path).fields
    assert fields["tokenizer.chat_template"].contents() == tokenizer.chat_template
    assert fields["tokenizer.ggml.pre"].contents() == "smollm"
    assert fields["tokenizer.ggml.eos_token_id"].contents() == 2
    engine = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    for text in (
        "The 42 quick\n\n  foxes",
        "naïve café 日本語 🙂",
        "<|im_start|>user\nhi<|im_end|>",
    ):
        assert engine.tokenize(text.encode(), add_bos=False, special=True) == tokenizer.encode(text)
    engine.close()


def test_lineage_is_read_back(tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "m")
    lineage = {"base": {"name": "tiny"}, "adapter": None}
    request = ConversionRequest(SafetensorsSource(folder), folder, "Q8_0", "tiny", lineage)
    GgufConverter().convert(request, tmp_path / "m.gguf")
    artifact = open_artifact(tmp_path / "m.gguf")
    assert artifact.format == "gguf" and artifact.quantization == "Q8_0"
    assert artifact.lineage == lineage


class Broken(SafetensorsSource):
    """A model with one bad number, or that fails in the middle."""

    def __init__(self, folder: Path, value: float | None) -> None:
        super().__init__(folder)
        self.value = value

    def rows(self, name: str, start: int, stop: int) -> Float32Array:
        values = super().rows(name, start, stop)
        if name.endswith("1.mlp.down_proj.weight"):
            if self.value is None:
                raise CorruptFileError("the disk went away")
            values[0, 0] = self.value
        return values


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
@pytest.mark.parametrize("mix", ["F32", "F16", "Q4_0", "Q4_K_M"])
def test_bad_weights_leave_nothing(value: float | None, mix: str, tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "m")
    request = ConversionRequest(Broken(folder, value), folder, mix, "tiny")
    with pytest.raises(CorruptFileError):
        GgufConverter().convert(request, tmp_path / "out" / "m.gguf")
    assert list((tmp_path / "out").iterdir()) == []


def test_values_beyond_half_precision_are_refused(tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "m")
    request = ConversionRequest(Broken(folder, 1e6), folder, "F16", "tiny")
    with pytest.raises(CorruptFileError, match="F16"):
        GgufConverter().convert(request, tmp_path / "m.gguf")


def edit_json(path: Path, **changes: object) -> None:
    import json

    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(folder: Path, tmp_path: Path) -> EdgeAdaptError:
    with pytest.raises(EdgeAdaptError) as caught:
        convert(folder, tmp_path / "out.gguf", "F16")
    assert not (tmp_path / "out.gguf").exists()
    return caught.value


def test_unknown_architecture_is_named(tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "m")
    edit_json(folder / "config.json", architectures=["MambaForCausalLM"])
    error = refused(folder, tmp_path)
    assert isinstance(error, UnsupportedError)
    assert "MambaForCausalLM" in str(error) and "LlamaForCausalLM" in str(error)


@pytest.mark.parametrize(
    ("pre_tokenizer", "words"),
    [
        ({"type": "Whitespace"}, "Whitespace"),
        ({"type": "Digits", "individual_digits": False}, "groups"),
        (None, "nothing"),
    ],
)
def test_unknown_pre_tokenizer_is_an_error(
    pre_tokenizer: dict[str, object] | None, words: str, tmp_path: Path
) -> None:
    folder = save_llama(tmp_path / "m")
    edit_json(folder / "tokenizer.json", pre_tokenizer=pre_tokenizer)
    error = refused(folder, tmp_path)
    assert isinstance(error, UnsupportedError) and words in str(error)


def test_more_tokens_than_embeddings(tmp_path: Path) -> None:
    from tests.tiny import save_tokenizer

    folder = save_llama(tmp_path / "m", vocab_size=300)
    save_tokenizer(folder, 320)
    assert "do not belong together" in str(refused(folder, tmp_path))


def test_unused_embeddings_become_placeholders(tmp_path: Path) -> None:
    from gguf import GGUFReader

    folder = save_llama(tmp_path / "m", vocab_size=352)
    from tests.tiny import save_tokenizer

    save_tokenizer(folder, 320)
    fields = GGUFReader(convert(folder, tmp_path / "m.gguf", "F16")).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert len(tokens) == 352 and tokens[351] == "[PAD351]"


def test_tensor_without_a_place_is_an_error(tmp_path: Path) -> None:
    class Extra(SafetensorsSource):
        def tensors(self) -> dict[str, TensorInfo]:
            name = "model.vision.weight"
            return super().tensors() | {name: TensorInfo(name, (2, 2), "F32")}

    folder = save_llama(tmp_path / "m")
    with pytest.raises(UnsupportedError, match=r"model\.vision\.weight"):
        GgufConverter().convert(
            ConversionRequest(Extra(folder), folder, "F16", "tiny"), tmp_path / "m.gguf"
        )


def test_output_is_never_overwritten(tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "m")
    (tmp_path / "m.gguf").write_text("mine")
    with pytest.raises(InputError, match="exists"):
        convert(folder, tmp_path / "m.gguf", "F16")
    assert (tmp_path / "m.gguf").read_text() == "mine"
    with pytest.raises(InputError, match="folder"):
        convert(folder, tmp_path, "F16")


@pytest.mark.parametrize("quantization", ["Q4", "int4", ""])
def test_unknown_quantization_lists_the_known(quantization: str, tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "m")
    with pytest.raises(InputError, match="Q4_K_M"):
        convert(folder, tmp_path / "m.gguf", quantization)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 5}, r"incomplete.*blk\.2"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers = '2'"),
        ({"hidden_size": None}, "hidden_size = None"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps = 'small'"),
        ({"rms_norm_eps": 0}, "rms_norm_eps = 0"),
        ({"rope_parameters": [1]}, r"rope_parameters = \[1\]"),
        ({"architectures": "LlamaForCausalLM"}, "architectures = 'LlamaForCausalLM'"),
    ],
)
def test_a_config_that_does_not_fit(changes: dict[str, object], words: str, tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "m")
    edit_json(folder / "config.json", **changes)
    error = refused(folder, tmp_path)
    assert isinstance(error, CorruptFileError)
    assert re.search(words, str(error))
