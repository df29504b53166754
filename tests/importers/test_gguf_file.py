"""GGUF import: the same model and tokenizer come out, and bad files are refused cleanly."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from edgeadapt.errors import CorruptFileError, InputError, UnsupportedError
from edgeadapt.gguf_io import GgufFile
from edgeadapt.importers.gguf_file import import_gguf
from edgeadapt.tokenizer import ModelTokenizer
from tests.importers.gguf_files import permute, write_gguf
from tests.tiny import CHAT_TEMPLATE, save_llama

Q = gguf.GGMLQuantizationType
IDS = torch.arange(40)[None] * 7 % 320
TEXTS = ["Hello  world 12 345\n\n\tx", "Grüße 日本語 🙂", "<|im_start|>user\nhi<|im_end|>", " a"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def tiny_gguf(tiny: Path) -> Path:
    return write_gguf(tiny, tiny.parent / "tiny.gguf")


def logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        return model(IDS).logits


LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 50000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}


def add_rope(writer: gguf.GGUFWriter, rope: dict[str, Any]) -> None:
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "llama3":  # as transformers: how much slower each frequency turns
        from transformers import LlamaConfig
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        config = LlamaConfig(hidden_size=64, num_attention_heads=4, rope_parameters=rope)
        slowed, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
        plain = 1 / rope["rope_theta"] ** (torch.arange(0, 16, 2) / 16)
        writer.add_tensor("rope_freqs.weight", (plain / slowed).numpy())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tied": False},
        {"heads": 4, "kv_heads": 4, "rms_norm_eps": 1e-6},
        {"heads": 4, "kv_heads": 1, "attention_bias": True, "mlp_bias": True},
        {"rope_parameters": LINEAR},
        {"rope_parameters": LLAMA3},
    ],
    ids=["tied", "head", "no-gqa", "biases", "linear-rope", "llama3-rope"],
)
def test_the_same_logits(tmp_path: Path, settings: dict[str, Any]) -> None:
    model = save_llama(tmp_path / "model", **settings)
    rope = settings.get("rope_parameters", {"rope_type": "default"})
    path = write_gguf(model, tmp_path / "m.gguf", edit=lambda writer: add_rope(writer, rope))
    import_gguf(path, tmp_path / "out")
    before, after = (
        load_file(model / "model.safetensors"),
        load_file(tmp_path / "out" / "model.safetensors"),
    )
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])
    torch.testing.assert_close(logits(tmp_path / "out"), logits(model), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", [Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0, Q.Q4_1])
def test_quantized_weights_are_what_gguf_dequantizes(
    tmp_path: Path, tiny: Path, kind: gguf.GGMLQuantizationType
) -> None:
    import_gguf(write_gguf(tiny, tmp_path / "m.gguf", kind=kind), tmp_path / "out")
    before = load_file(tiny / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    for name, weight in before.items():
        if weight.ndim == 2:
            heads = {"q": 4, "k": 2}.get(name[-13], 0) if "_proj" in name else 0
            stored = gguf.quants.quantize(permute(weight, heads) if heads else weight, kind)
            rounded = gguf.quants.dequantize(stored, kind)
            if heads:  # undone with plain indexing, head by head
                dim = weight.shape[0] // heads
                order = [h * dim + (i % (dim // 2)) * 2 + i // (dim // 2)
                         for h in range(heads) for i in range(dim)]  # fmt: skip
                rounded = rounded[order]
            np.testing.assert_array_equal(after[name], rounded)


def test_tokenizer_template_and_generation_config(
    tmp_path: Path, tiny: Path, tiny_gguf: Path
) -> None:
    import_gguf(tiny_gguf, tmp_path / "out")
    ours, original = ModelTokenizer.from_folder(tmp_path / "out"), ModelTokenizer.from_folder(tiny)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in TEXTS:
        ids = original.encode(text)
        assert ours.encode(text) == ids
        assert theirs.encode(text, add_special_tokens=False) == ids == theirs.encode(text)
        assert ours.decode(ids) == theirs.decode(ids) == text
    assert ours.chat_template == theirs.chat_template == CHAT_TEMPLATE
    assert ours.special_tokens == original.special_tokens
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (1, 2, 2)
    assert ours.stop_ids == {2, 0}
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "pad_token_id": 2, "eos_token_id": [2, 0]}


def test_the_end_of_turn_token_stops_even_if_eos_is_another(tmp_path: Path, tiny: Path) -> None:
    import_gguf(write_gguf(tiny, tmp_path / "m.gguf", replace={"eos": 0}), tmp_path / "out")
    assert ModelTokenizer.from_folder(tmp_path / "out").stop_ids == {0, 2}


def test_bos_is_added_where_the_file_asks(tmp_path: Path, tiny: Path) -> None:
    path = write_gguf(tiny, tmp_path / "m.gguf", edit=lambda writer: writer.add_add_bos_token(True))
    import_gguf(path, tmp_path / "out")
    plain = ModelTokenizer.from_folder(tiny).encode("hi there")
    ours = ModelTokenizer.from_folder(tmp_path / "out")
    assert ours.encode("hi there") == plain
    assert ours.encode("hi there", add_special_tokens=True) == [1, *plain]
    assert AutoTokenizer.from_pretrained(tmp_path / "out").encode("hi there") == [1, *plain]


def test_user_defined_tokens_are_cut_out_but_shown(tmp_path: Path, tiny: Path) -> None:
    tokens = len(json.loads((tiny / "tokenizer.json").read_text())["model"]["vocab"])
    types = [3, 3, 4] + [1] * (tokens - 3)
    import_gguf(write_gguf(tiny, tmp_path / "m.gguf", replace={"types": types}), tmp_path / "out")
    ours = ModelTokenizer.from_folder(tmp_path / "out")
    assert ours.encode("<|im_end|>") == [2]
    assert ours.decode([2], skip_special_tokens=True) == "<|im_end|>"


def add_bool(key: str) -> Any:
    return lambda writer: writer.add_bool(key, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "qwen3"}, "architecture 'qwen3'; GGUF import supports llama"),
        ({"replace": {"pre": "nobody"}}, "rules 'nobody'"),
        ({"replace": {"pre": None}}, "rules 'default'"),
        ({"replace": {"model": "llama"}}, "tokenizer of the kind 'llama'"),
        ({"edit": lambda w: w.add_expert_count(8)}, "mixture of experts"),
        ({"edit": lambda w: w.add_value_length(8)}, "different lengths"),
        ({"edit": lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN)}, "'yarn'"),
        ({"edit": lambda w: w.add_tensor("odd", np.zeros(4, "f4"))}, "'odd' has no place"),
        (
            {"edit": lambda w: w.add_tensor("rope_freqs.weight", np.arange(1, 9, dtype="f4"))},
            "not those of Llama 3",
        ),
    ],
)
def test_unsupported_files(
    tmp_path: Path, tiny: Path, options: dict[str, Any], message: str
) -> None:
    path = write_gguf(tiny, tmp_path / "m.gguf", **options)
    with pytest.raises(UnsupportedError, match=message):
        import_gguf(path, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"replace": {"merges": ["x"]}}, "merge 'x' is not a pair"),
        ({"replace": {"merges": ["a zzz"]}}, "merges are wrong"),
        ({"replace": {"tokens": ["a"] * 320, "types": [1] * 320}}, "tokens occur twice"),
        (
            {"replace": {"tokens": [str(i) for i in range(321)], "types": [1] * 321}},
            "321 tokens, 320 embeddings",
        ),
        ({"replace": {"types": [1]}}, "lack a token_type"),
        ({"replace": {"eos": 9999}}, "eos_token_id 9999 is not a token"),
        ({"edit": add_bool("llama.expert_count")}, "holds bool, expected int"),
        ({"edit": lambda w: w.add_eot_token_id(5000)}, "eot_token_id 5000"),
    ],
)
def test_contradictory_files(
    tmp_path: Path, tiny: Path, options: dict[str, Any], message: str
) -> None:
    path = write_gguf(tiny, tmp_path / "m.gguf", **options)
    with pytest.raises(CorruptFileError, match=message):
        import_gguf(path, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_every_truncation_is_corrupt(tmp_path: Path, tiny_gguf: Path) -> None:
    whole = tiny_gguf.read_bytes()
    for size in [*range(400), *range(400, len(whole), 997), len(whole) - 1]:
        (tmp_path / "m.gguf").write_bytes(whole[:size])
        with pytest.raises(CorruptFileError):
            import_gguf(tmp_path / "m.gguf", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_hostile_counts_are_refused_at_once(tmp_path: Path) -> None:
    key = struct.pack("<Q", 1) + b"k" + struct.pack("<I", 9)
    for kind in (0, 8, 9):
        array = struct.pack("<IQ", kind, 2**62)
        (tmp_path / "m").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key + array)
        with pytest.raises(CorruptFileError):
            GgufFile(tmp_path / "m")
    (tmp_path / "m").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2**63, 2**63) + b"\0" * 64)
    with pytest.raises(CorruptFileError, match="more than fit"):
        GgufFile(tmp_path / "m")


@pytest.mark.parametrize("head", [struct.pack("<I", 1), struct.pack(">I", 3)])
def test_other_versions_are_named(tmp_path: Path, head: bytes) -> None:
    (tmp_path / "m").write_bytes(b"GGUF" + head + b"\0" * 64)
    with pytest.raises(UnsupportedError, match="versions 2 and 3"):
        GgufFile(tmp_path / "m")


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    deadline=None,
    max_examples=150,
)
@given(st.data())
def test_any_damage_to_the_header_is_an_input_error(
    tmp_path: Path, tiny_gguf: Path, data: st.DataObject
) -> None:
    damaged = bytearray(tiny_gguf.read_bytes())
    end = min(tensor.offset for tensor in GgufFile(tiny_gguf).tensors.values())
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "m.gguf").write_bytes(damaged)
    out = tmp_path / "out"
    try:
        import_gguf(tmp_path / "m.gguf", out)
    except InputError:
        assert not out.exists()
    else:
        for path in out.iterdir():
            path.unlink()
        out.rmdir()
