"""Files have the tensors and the key-values that llama.cpp's own converter writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from edgeadapt.base_model import resolve_base
from edgeadapt.converters.base import ConversionRequest
from edgeadapt.converters.gguf.converter import GgufConverter
from edgeadapt.safetensors_io import SafetensorsSource
from tests.converters.gguf import llama_cpp_converter
from tests.tiny import CORPUS, FAMILIES, save_model

pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.e2e  # llama.cpp's converter and the vocabularies take half a minute

SENTENCEPIECE = {"llama-spm": "llama", "mistral": "mistral", "gemma2": "gemma2", "gemma3": "gemma3"}
"""Models whose tokenizer is a tokenizer.model; the others have SmolLM2's byte-level BPE."""

MODELS = {**{family: family for family in FAMILIES}, **SENTENCEPIECE}
KINDS = {"F32": "f32", "F16": "f16"}

_TRAIN = """
import sys, sentencepiece
sentencepiece.SentencePieceTrainer.train(
    input=sys.argv[1], model_prefix=sys.argv[2], vocab_size=400, model_type="bpe",
    byte_fallback=True, user_defined_symbols=["<mask>"], minloglevel=2,
)
"""


def save_with_tokenizer(folder: Path, model: str, tokenizers: Path, spm: Path) -> None:
    """A tiny model under a name that says something, with a vocabulary that llama.cpp knows."""
    config: dict[str, Any] = {}
    generation = {"temperature": 0.6, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.1}
    if model in SENTENCEPIECE:
        save_model(folder, SENTENCEPIECE[model], vocab_size=416, tokenizer=False)
        shutil.copyfile(spm, folder / "tokenizer.model")
        config = {
            "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True,
            "add_eos_token": False, "tokenizer_class": "LlamaTokenizer", "chat_template": "{{ x }}",
            "added_tokens_decoder": {
                "0": {"content": "<unk>", "special": True},
                "1": {"content": "<s>", "special": True},
                "2": {"content": "</s>", "special": True},
                "400": {"content": "<|user|>", "special": False},
                "401": {"content": "two\u2581words", "special": False},
            },
        }  # fmt: skip
    else:
        save_model(folder, MODELS[model], vocab_size=49152, tokenizer=False)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(tokenizers / name, folder / name)
        config = json.loads((folder / "tokenizer_config.json").read_text())
        if model == "phi3":  # by this name llama.cpp's converter knows a Phi-4
            config["tokenizer_class"] = "GPT2Tokenizer"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps(generation))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\ntags: [tiny]\n---\n# A model\n")


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every model and llama.cpp's own file of it."""
    try:
        llama_cpp_converter.converter()
    except llama_cpp_converter.Unavailable as reason:
        pytest.skip(f"llama.cpp's converter cannot be had: {reason}")
    root = tmp_path_factory.mktemp("identity")
    corpus = root / "corpus.txt"
    corpus.write_text("\n".join(CORPUS * 20 + [str(n) for n in range(300)]))
    llama_cpp_converter.python(_TRAIN, str(corpus), str(root / "spm"))
    tokenizers = resolve_base("default")
    for model in MODELS:
        folder = root / model / "Tiny-Llama-7B-Instruct-v2"
        save_with_tokenizer(folder, model, tokenizers, root / "spm.model")
    jobs = [
        (root / model / "Tiny-Llama-7B-Instruct-v2", root / f"{model}-{kind}.gguf", KINDS[kind])
        for model in MODELS
        for kind in KINDS
    ]
    llama_cpp_converter.convert_all(jobs)
    return root


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", MODELS)
def test_equals_llama_cpps_own_converter(
    model: str, kind: str, converted: Path, tmp_path: Path
) -> None:
    from gguf import GGUFReader

    folder = converted / model / "Tiny-Llama-7B-Instruct-v2"
    request = ConversionRequest(SafetensorsSource(folder), folder, kind, folder.name, threads=2)
    ours = GGUFReader(GgufConverter().convert(request, tmp_path / "ours.gguf").path)
    theirs = GGUFReader(converted / f"{model}-{kind}.gguf")
    left, right = key_values(ours), key_values(theirs)
    assert {key: left.get(key) for key in right} == right
    assert {key for key in left.keys() - right.keys() if not key.startswith("edgeadapt.")} == set()
    assert tensors(ours) == tensors(theirs)


def key_values(reader: Any) -> dict[str, Any]:
    return {
        name: (field.types, field.contents())
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.")
    }


def tensors(reader: Any) -> dict[str, tuple[str, list[int], bytes]]:
    return {
        tensor.name: (tensor.tensor_type.name, tensor.shape.tolist(), tensor.data.tobytes())
        for tensor in reader.tensors
    }
