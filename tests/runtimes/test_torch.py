"""The torch reference: equal to a plain transformers call, and strict about what it loads."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from edgeadapt.artifact import Artifact, open_artifact
from edgeadapt.errors import CorruptFileError, InputError, UnsupportedError
from edgeadapt.runtimes import Session, SessionSettings, get_runtime
from edgeadapt.runtimes.torch import TorchRuntime
from edgeadapt.safetensors_io import SafetensorsSource, write_safetensors

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

IDS = np.random.default_rng(0).integers(3, 320, 100).tolist()
SETTINGS = SessionSettings(threads=1, context=128)


@pytest.fixture
def session(tiny_model: Path) -> Session:
    return get_runtime("torch").load(open_artifact(tiny_model), SETTINGS)


@pytest.fixture(scope="module")
def expected(tiny_model: Path) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0].numpy()


def test_logits(session: Session, expected: np.ndarray) -> None:
    np.testing.assert_allclose(session.all_logits(IDS), expected, atol=1e-5)
    session.reset()
    for start, stop in ((0, 60), (60, 61), (61, 100)):
        session.forward(IDS[start:stop])
        assert session.position == stop
        np.testing.assert_allclose(session.last_logits(), expected[stop - 1], atol=1e-5)
        assert session.greedy() == expected[stop - 1].argmax()


def test_generation_equals_transformers(tiny_model: Path, session: Session) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    whole = model.generate(torch.tensor([IDS[:8]]), max_new_tokens=12, do_sample=False)
    theirs = [token for token in whole[0, 8:].tolist() if token not in session.stop_ids]
    assert list(session.generate(IDS[:8], max_tokens=12)) == theirs


def test_context_is_enforced(session: Session) -> None:
    with pytest.raises(InputError, match=r"129.*128"):
        session.forward([5] * 129)
    with pytest.raises(InputError, match="no tokens"):
        session.forward([])


def test_missing_tensors_are_not_made_up(tiny_model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    (copy / "model.safetensors").unlink()
    source = SafetensorsSource(tiny_model)
    kept = {name: info for name, info in source.tensors().items() if "layers.1.mlp" not in name}
    write_safetensors(copy / "model.safetensors", kept, source.rows)
    with pytest.raises(CorruptFileError, match=r"lacks 3 tensors.*layers\.1\.mlp"):
        get_runtime("torch").load(open_artifact(copy), SETTINGS)


def test_truncated_weights(tiny_model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CorruptFileError, match="copy"):
        get_runtime("torch").load(open_artifact(copy), SETTINGS)


def test_pickled_weights_are_not_loaded(tiny_model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    (copy / "model.safetensors").unlink()
    torch.save({}, copy / "pytorch_model.bin")
    with pytest.raises(InputError, match="copy"):
        get_runtime("torch").load(open_artifact(copy), SETTINGS)


def test_other_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="onnx"):
        get_runtime("torch").load(Artifact(tmp_path, "onnx", "int4"), SETTINGS)
    with pytest.raises(InputError, match=r"config\.json"):
        get_runtime("torch").load(Artifact(tmp_path, "hf", "float32"), SETTINGS)


@pytest.mark.parametrize("kind", ["ADAPTER", "HOULSBY"])
def test_a_method_that_peft_has_not(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    (tmp_path / "adapter_config.json").write_text(f'{{"peft_type": "{kind}"}}')
    with pytest.raises(UnsupportedError, match=f"method {kind.lower()}, which PEFT does not run"):
        TorchRuntime(tmp_path).load(open_artifact(tiny_model), SETTINGS)


def test_live_adapter(tiny_model: Path, tmp_path: Path, expected: np.ndarray) -> None:
    peft = pytest.importorskip("peft")
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, config)
    adapted.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        wanted = adapted(torch.tensor([IDS])).logits[0].numpy()
    session = TorchRuntime(tmp_path / "adapter").load(open_artifact(tiny_model), SETTINGS)
    found = session.all_logits(IDS)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert np.abs(found - expected).max() > 1e-3
    with pytest.raises(InputError, match="adapter_model"):
        TorchRuntime(tmp_path).load(open_artifact(tiny_model), SETTINGS)
