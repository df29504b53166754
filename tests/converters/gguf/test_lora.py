"""A GGUF LoRA beside the base's file gives the live PEFT model's logits in llama.cpp."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import IA3Config, LoHaConfig, LoraConfig, PeftConfig

from edgeadapt.artifact import open_artifact
from edgeadapt.errors import EdgeAdaptError, InputError, UnsupportedError
from edgeadapt.export import export, open_model
from edgeadapt.export_separate import export_adapter
from edgeadapt.runtimes import SessionSettings, get_runtime
from edgeadapt.weights import Float32Array
from tests.adapters.test_merged import ALL, live_model, save_adapter
from tests.tiny import save_llama

llama_cpp = pytest.importorskip("llama_cpp")

QUIET = llama_cpp.llama_log_callback(lambda *_: None)  # llama.cpp keeps the pointer for good
llama_cpp.llama_log_set(QUIET, ctypes.c_void_p(0))

IDS = [3 + (7 * i) % 300 for i in range(60)]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    made = {"tied": save_llama(root / "tied"), "untied": save_llama(root / "untied", tied=False)}
    for name, folder in made.items():
        export(open_model(str(folder)), "gguf", "F32", root / f"{name}.gguf")
    return made


def logits_with(base: Path, adapter: Path, scale: float = 1.0) -> Float32Array:
    """Logits of the base's F32 file with an adapter loaded at run time."""
    engine = llama_cpp.Llama(
        str(base), n_ctx=128, logits_all=True, verbose=False, type_k=0, type_v=0, flash_attn=False
    )
    loaded = llama_cpp.llama_adapter_lora_init(engine._model.model, str(adapter).encode())
    assert loaded
    adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(loaded)
    scales = (ctypes.c_float * 1)(scale)
    assert llama_cpp.llama_set_adapters_lora(engine._ctx.ctx, adapters, 1, scales) == 0
    engine.eval(IDS)
    scores = np.array(engine.scores[: len(IDS)], dtype=np.float32)
    engine.close()
    return scores


CASES: dict[str, tuple[str, PeftConfig]] = {
    "lora": ("tied", LoraConfig(r=8, lora_alpha=16, target_modules=ALL)),
    "rslora": ("tied", LoraConfig(r=8, lora_alpha=16, use_rslora=True, target_modules=ALL)),
    "alpha-pattern": (
        "tied",
        LoraConfig(r=4, target_modules=ALL, alpha_pattern={"k_proj": 32, "up_proj": 1}),
    ),
    "rank-pattern": (
        "tied",
        LoraConfig(r=8, lora_alpha=8, target_modules=ALL, rank_pattern={"q_proj": 2, "o_proj": 3}),
    ),
    "all-of-it": (
        "untied",
        LoraConfig(
            r=4,
            use_rslora=True,
            target_modules=[*ALL, "embed_tokens", "lm_head"],
            rank_pattern={"embed_tokens": 5},
            alpha_pattern={"lm_head": 2, "embed_tokens": 3},
        ),
    ),
    "embeddings": ("untied", LoraConfig(r=4, target_modules=["embed_tokens"])),
    "head": ("untied", LoraConfig(r=4, target_modules=["lm_head"])),
}  # fmt: skip


def write(base: Path, adapter: Path, out: Path, quantization: str | None = None) -> Path:
    return export_adapter(str(base), [str(adapter)], "gguf", quantization, out).path


@pytest.mark.parametrize("name", list(CASES))
def test_logits_equal_the_live_model(name: str, bases: dict[str, Path], tmp_path: Path) -> None:
    kind, config = CASES[name]
    base = bases[kind]
    adapter = save_adapter(base, tmp_path / "a", config)
    file = write(base, adapter, tmp_path / "a.gguf")
    with torch.no_grad():
        expected = live_model(base, adapter)(input_ids=torch.tensor([IDS])).logits[0].numpy()
    gguf = base.parent / f"{kind}.gguf"
    assert np.abs(logits_with(gguf, file) - expected).max() < 1e-3
    assert np.abs(logits_with(gguf, file, scale=0.0) - expected).max() > 1e-2  # it does something


def test_a_session_switches_to_an_adapter_and_back(bases: dict[str, Path], tmp_path: Path) -> None:
    base = bases["tied"]
    adapter = save_adapter(base, tmp_path / "a", LoraConfig(r=8, target_modules=ALL))
    file = write(base, adapter, tmp_path / "a.gguf")
    with torch.no_grad():
        expected = live_model(base, adapter)(input_ids=torch.tensor([IDS])).logits[0].numpy()
    settings = SessionSettings(threads=1, context=128, exact=True)
    session = get_runtime("llama-cpp").load(open_artifact(base.parent / "tied.gguf"), settings)
    try:
        plain = session.all_logits(IDS)
        for _ in range(2):
            session.use_adapter(file)
            assert session.position == 0
            assert np.abs(session.all_logits(IDS) - expected).max() < 1e-3
            session.use_adapter(None)
            np.testing.assert_allclose(session.all_logits(IDS), plain, atol=1e-6)
        other = save_llama(tmp_path / "other", hidden=128)
        foreign = save_adapter(other, tmp_path / "b", LoraConfig(r=8, target_modules=ALL))
        (tmp_path / "damaged.gguf").write_bytes(file.read_bytes()[:2000])
        unusable = (
            write(other, foreign, tmp_path / "b.gguf"), tmp_path / "damaged.gguf",
            tmp_path / "missing.gguf", base.parent / "tied.gguf",
        )  # fmt: skip
        for path in unusable:
            with pytest.raises(InputError, match="cannot use the adapter"):
                session.use_adapter(path)
        np.testing.assert_allclose(session.all_logits(IDS), plain, atol=1e-6)
    finally:
        session.close()


@pytest.mark.parametrize(("quantization", "tolerance"), [("F16", 0.02), ("Q8_0", 0.5)])
def test_stored_smaller(
    quantization: str, tolerance: float, bases: dict[str, Path], tmp_path: Path
) -> None:
    base = bases["tied"]
    config = LoraConfig(r=32, lora_alpha=8, target_modules=ALL)
    adapter = save_adapter(base, tmp_path / "a", config)
    small = write(base, adapter, tmp_path / "small.gguf", quantization)
    large = write(base, adapter, tmp_path / "large.gguf")
    assert open_artifact(small).quantization == quantization
    assert small.stat().st_size < large.stat().st_size
    gguf = base.parent / "tied.gguf"
    difference = np.abs(logits_with(gguf, small) - logits_with(gguf, large)).max()
    assert 0 < difference < tolerance


REFUSED: dict[str, tuple[str, PeftConfig, str]] = {
    "dora": ("tied", LoraConfig(r=4, use_dora=True, target_modules=["q_proj"]), "DoRA"),
    "ia3": ("tied", IA3Config(target_modules=["q_proj"], feedforward_modules=[]), "IA3"),
    "loha": ("tied", LoHaConfig(r=4, target_modules=["q_proj"]), "loha"),
    "to-save": (
        "tied",
        LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["norm"]),
        "modules_to_save",
    ),
    "tokens": (
        "tied",
        LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[3, 5]),
        "single tokens",
    ),
    "tied-embedding": ("tied", LoraConfig(r=4, target_modules=["embed_tokens"]), "embedding"),
    "tied-head": ("tied", LoraConfig(r=4, target_modules=["lm_head"]), "lm_head"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_the_format_cannot_carry_is_refused(
    name: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    kind, config, words = REFUSED[name]
    adapter = save_adapter(bases[kind], tmp_path / "a", config)
    with pytest.raises(UnsupportedError, match=words) as caught:
        write(bases[kind], adapter, tmp_path / "a.gguf")
    assert "--adapter-mode merged" in str(caught.value)
    assert not (tmp_path / "a.gguf").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"format": "onnx"}, "end it with .onnx_adapter"),
        ({"quantization": "Q4_K_M"}, "Q8_0"),
        ({"adapter": ["{a}=0.5"]}, "without a weight"),
        ({"adapter": []}, "one adapter"),
    ],
)
def test_requests_that_make_no_sense(
    arguments: dict[str, Any], words: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    config = LoraConfig(r=4, target_modules=["q_proj"])
    adapter = save_adapter(bases["tied"], tmp_path / "a", config)
    given = {"adapter": ["{a}"], "format": "gguf", "quantization": "F32"} | arguments
    given["adapter"] = [item.format(a=adapter) for item in given["adapter"]]
    with pytest.raises(InputError, match=words):
        export_adapter(str(bases["tied"]), out=tmp_path / "o", **given)
    assert not (tmp_path / "o").exists()


def test_a_broken_adapter_leaves_nothing(bases: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    config = LoraConfig(r=4, target_modules=["q_proj"])
    adapter = save_adapter(bases["tied"], tmp_path / "a", config)
    path = adapter / "adapter_model.safetensors"
    save_file({k: v * float("inf") for k, v in load_file(path).items()}, path)
    with pytest.raises(EdgeAdaptError, match="NaN or infinite"):
        write(bases["tied"], adapter, tmp_path / "o" / "a.gguf")
    assert list((tmp_path / "o").iterdir()) == []
