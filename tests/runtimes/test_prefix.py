"""A trained prefix on each engine is PEFT's prefix in torch."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from edgeadapt.adapters import parse_adapters
from edgeadapt.artifact import Artifact, open_artifact
from edgeadapt.bench.run import runtimes_of
from edgeadapt.cli import cli
from edgeadapt.errors import AdapterError, InputError, UnsupportedError
from edgeadapt.export import export, open_model
from edgeadapt.export_separate import export_prefix, export_with_adapters
from edgeadapt.fidelity.metrics import kl_divergence, log_softmax
from edgeadapt.jobs import artifact_payload, open_session
from edgeadapt.pipeline import evaluation
from edgeadapt.pipeline.evaluation import Settings, Subject, evaluate_artifacts
from edgeadapt.prefix import Prefix, prefix_system, read_prefix, write_prefix
from edgeadapt.runtimes import SessionSettings, get_runtime
from edgeadapt.runtimes.llama_cpp.state import is_reordered
from tests.tiny import save_model

pytest.importorskip("llama_cpp")
pytest.importorskip("onnxruntime")

IDS = np.random.default_rng(0).integers(3, 320, 64).tolist()
TOKENS = 5
CONFIGS = {
    "prefix": lambda: peft.PrefixTuningConfig(num_virtual_tokens=TOKENS, task_type="CAUSAL_LM"),
    "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=TOKENS, task_type="CAUSAL_LM"),
}


def train_prefix(base: Path, out: Path, kind: str, *, steps: int = 6) -> Path:
    """By gradients, on random text."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), CONFIGS[kind]())
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
        batch = torch.randint(3, 320, (2, 32))
        for _ in range(steps):
            model(input_ids=batch, labels=batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.save_pretrained(out, save_embedding_layers=False)
    return out


def live(base: Path, adapter: Path | None) -> np.ndarray:
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        model = peft.PeftModel.from_pretrained(model, adapter).eval()
    with torch.no_grad():
        found: np.ndarray = model(input_ids=torch.tensor([IDS])).logits[0].numpy()
    return found[-len(IDS) :]  # of a soft prompt, the positions of the text alone


FAST = [
    ("llama", "prefix", "gguf"), ("qwen3", "prefix", "gguf"), ("llama", "prompt", "gguf"),
    ("llama", "prefix", "onnx"), ("gemma3", "prefix", "onnx"),
]  # fmt: skip
MORE = [
    ("qwen2", "prompt", "gguf"), ("smollm3", "prefix", "gguf"), ("granite", "prefix", "gguf"),
    ("qwen3", "prefix", "onnx"), ("llama", "prompt", "onnx"),
]  # fmt: skip
CASES = [*FAST, *(pytest.param(*case, marks=pytest.mark.e2e) for case in MORE)]


@pytest.mark.parametrize(("family", "kind", "format"), CASES)
def test_logits_are_those_of_peft(family: str, kind: str, format: str, tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", family)
    adapter = train_prefix(base, tmp_path / "adapter", kind)
    file = export_prefix(str(base), [adapter], tmp_path / "p.safetensors").path
    expected, plain = live(base, adapter), live(base, None)
    assert abs(expected - plain).max() > 0.05
    runtime, quantization, name = {
        "gguf": ("llama-cpp", "F32", "m.gguf"), "onnx": ("onnxruntime", "fp32", "m"),
    }[format]  # fmt: skip
    made = export(open_model(str(base)), format, quantization, tmp_path / name)
    for exact, bound in ((True, 1e-5), (False, 1e-4)):
        settings = SessionSettings(threads=1, context=128, exact=exact)
        session = get_runtime(runtime).load(made, settings)
        try:
            session.use_adapter(file)
            for _ in range(2):  # a fresh sequence starts from the prefix again
                found = session.all_logits(IDS)
                kl = kl_divergence(log_softmax(expected), log_softmax(found))
                assert kl.mean() <= bound
                if exact:
                    assert abs(found - expected).max() <= 1e-3
            session.use_adapter(None)
            assert (
                kl_divergence(log_softmax(plain), log_softmax(session.all_logits(IDS))).max()
                < bound
            )
        finally:
            session.close()


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A base in both formats, and a prefix for it."""
    folder = tmp_path_factory.mktemp("shipped")
    base = save_model(folder / "base", "llama")
    adapter = train_prefix(base, folder / "adapter", "prefix")
    model = open_model(str(base))
    return {
        "base": base,
        "adapter": adapter,
        "prefix": export_prefix(str(base), [adapter], folder / "p.safetensors").path,
        "gguf": export(model, "gguf", "F32", folder / "m.gguf"),
        "onnx": export(model, "onnx", "fp32", folder / "m"),
    }


def greedy(base: Path, adapter: Path | None, ids: list[int], count: int) -> list[int]:
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        model = peft.PeftModel.from_pretrained(model, adapter).eval()
    ids = list(ids)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[-count:]


@pytest.mark.parametrize("format", ["gguf", "onnx"])
def test_every_way_to_generate_keeps_it(shipped: dict[str, Any], format: str) -> None:
    """One that dropped the prefix would go on as the base does."""
    artifact: Artifact = shipped[format]
    ids = IDS[:12]
    expected = greedy(shipped["base"], shipped["adapter"], ids, 8)
    assert expected != greedy(shipped["base"], None, ids, 8)
    runtime = "llama-cpp" if format == "gguf" else "onnxruntime"
    payload = artifact_payload(artifact.path, shipped["prefix"], runtime, threads=1)
    session = open_session(payload | {"exact": True}, context=len(ids) + 8)
    try:
        assert session.start == session.position == TOKENS
        assert not session.stop_ids & set(expected)
        for _ in range(2):
            session.reset()
            assert list(session.generate(ids, max_tokens=8)) == expected
        session.reset()
        found = []
        session.forward(ids)
        for _ in range(8):
            found.append(session.greedy())
            session.forward(found[-1:])
        assert found == expected
        assert session.position == TOKENS + len(ids) + 8
    finally:
        session.close()


def test_bench_and_evaluate_run_it(shipped: dict[str, Any], tmp_path: Path) -> None:
    data = tmp_path / "held.jsonl"
    rows = [
        {"prompt": f"What is {i}?", "completion": f"The quick brown fox {i}."} for i in range(6)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    subject = ("--base", shipped["base"], "--adapter", shipped["adapter"], "--data", data)
    common = ("--beside", shipped["prefix"], "--gate", "parity=false", "--json", "-q")
    done = run("evaluate", shipped["gguf"].path, *subject, *common)
    assert done.exit_code == 0, done.stderr
    (entry,) = json.loads(done.stdout)["artifacts"]
    assert entry["fidelity"]["llama-cpp"]["fidelity"]["mean_kl"]["value"] < 1e-4
    short = ("--prompt-tokens", 8, "--decode-tokens", 2, "--repetitions", 1, "--threads", 1)
    done = run(
        "bench", shipped["gguf"].path, "--adapter", shipped["prefix"], *short, "--json", "-q"
    )
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)[0]["settings"]["adapter"] == "p.safetensors"


def test_of_several_runtimes_one_that_can_is_taken(shipped: dict[str, Any], tmp_path: Path) -> None:
    """The preferred one for ONNX, onnxruntime-genai, cannot start from a KV cache."""
    pytest.importorskip("onnxruntime_genai")
    onnx, prefix = shipped["onnx"].path, shipped["prefix"]
    assert artifact_payload(onnx)["runtime"] == "ort-genai"
    assert artifact_payload(onnx, prefix)["runtime"] == "onnxruntime"
    for name in (None, "all"):
        assert runtimes_of(onnx, name, prefix) == ("onnxruntime",)
    data = tmp_path / "held.jsonl"
    data.write_text(json.dumps({"prompt": "What?", "completion": "The quick brown fox."}) + "\n")
    subject = Subject(shipped["base"], parse_adapters([shipped["adapter"]]), data=data)
    settings = Settings("all", quantized_base=False, beside=prefix)
    (entry,) = evaluate_artifacts([onnx], subject, settings)["artifacts"]
    assert list(entry["fidelity"]) == ["onnxruntime"]
    assert entry["fidelity"]["onnxruntime"]["fidelity"]["mean_kl"]["value"] < 1e-4


def test_one_that_cannot_is_refused_before_any_work(
    shipped: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx, prefix = shipped["onnx"].path, shipped["prefix"]
    with pytest.raises(UnsupportedError, match="llama-cpp and onnxruntime can"):
        runtimes_of(onnx, "ort-genai", prefix)
    with pytest.raises(UnsupportedError, match="llama-cpp and onnxruntime can"):
        artifact_payload(shipped["base"], prefix)
    subject = Subject(shipped["base"], parse_adapters([shipped["adapter"]]))
    monkeypatch.setattr(evaluation, "yardstick_of", None)  # it takes minutes
    with pytest.raises(UnsupportedError, match="llama-cpp and onnxruntime can"):
        evaluate_artifacts([onnx], subject, Settings("ort-genai", beside=prefix))


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_the_command_line_ships_it(shipped: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "p.safetensors"
    arguments = ("export", "--base", shipped["base"], "--adapter", shipped["adapter"])
    done = run(*arguments, "--adapter-mode", "separate", "--out", out)
    assert done.exit_code == 0, done.stderr
    assert "--adapter" in done.stdout
    assert read_prefix(out).tokens == TOKENS
    assert out.read_bytes() == shipped["prefix"].read_bytes()
    again = run(*arguments, "--adapter-mode", "separate", "--out", out)
    assert again.exit_code == 2
    for more in (("--adapter", shipped["base"]), ("--quant", "Q8_0"), ("--parity",)):
        refused = run(
            *arguments, *more, "--adapter-mode", "separate", "--out", tmp_path / "q.safetensors"
        )
        assert refused.exit_code == 2 and "Error: " in refused.stderr, more
    weighted = (*arguments[:-1], f"{shipped['adapter']}=0.5", "--adapter-mode", "separate")
    refused = run(*weighted, "--out", tmp_path / "q.safetensors")
    assert refused.exit_code == 2 and "without a weight" in refused.stderr
    merged = run(*arguments, "--format", "gguf", "--quant", "F32", "--out", tmp_path / "m.gguf")
    assert merged.exit_code == 2
    assert "--adapter-mode separate --out prefix.safetensors" in merged.stderr


def test_an_unknown_order_of_keys_is_refused() -> None:
    assert is_reordered(0, "llama")
    assert not is_reordered(2, "qwen3")
    with pytest.raises(UnsupportedError, match="'command-r' files"):
        is_reordered(0, "command-r")


def test_a_graph_that_takes_adapters_takes_a_prefix_too(
    shipped: dict[str, Any], tmp_path: Path
) -> None:
    lora = tmp_path / "lora"
    base = AutoModelForCausalLM.from_pretrained(shipped["base"])
    peft.get_peft_model(base, peft.LoraConfig(target_modules=["q_proj"])).save_pretrained(lora)
    made = export_with_adapters(str(shipped["base"]), [lora], "fp32", tmp_path / "graph")
    payload = artifact_payload(made.path, shipped["prefix"], "onnxruntime", threads=1)
    session = open_session(payload, context=len(IDS))
    try:
        expected = live(shipped["base"], shipped["adapter"])
        assert abs(session.all_logits(IDS) - expected).max() <= 1e-3
    finally:
        session.close()


def test_what_does_not_fit_is_refused(shipped: dict[str, Any], tmp_path: Path) -> None:
    prefix = shipped["prefix"]

    def opening(path: Path, runtime: str, file: Path = prefix, context: int = 64) -> None:
        open_session(artifact_payload(path, file, runtime, threads=1), context=context).close()

    onnx, gguf = shipped["onnx"].path, shipped["gguf"].path
    with pytest.raises(UnsupportedError, match="llama-cpp and onnxruntime can"):
        opening(onnx, "onnxruntime-genai")
    with pytest.raises(UnsupportedError, match="llama-cpp and onnxruntime can"):
        opening(shipped["base"], "torch")
    other = save_model(tmp_path / "other", "llama", seed=1)
    made = export(open_model(str(other)), "gguf", "F32", tmp_path / "other.gguf")
    with pytest.raises(AdapterError, match="was trained for a base with sha256"):
        opening(made.path, "llama-cpp")
    tensors = load_file(prefix)
    anonymous = tmp_path / "anonymous.safetensors"
    tag = {"kind": "edgeadapt-prefix", "schema_version": "1"}
    save_file(tensors, anonymous, metadata=tag)
    larger = export(
        open_model(str(save_model(tmp_path / "larger", "llama", layers=3))), "gguf", "F32",
        tmp_path / "larger.gguf",
    )  # fmt: skip
    for path, runtime in ((larger.path, "llama-cpp"), (gguf, "llama-cpp"), (onnx, "onnxruntime")):
        if path != larger.path:
            opening(path, runtime, anonymous)
            continue
        with pytest.raises(AdapterError, match="trained for another base"):
            opening(path, runtime, anonymous)
    window = export(
        open_model(str(save_model(tmp_path / "w", "gemma3", heads=4))), "gguf", "F32",
        tmp_path / "w.gguf",
    )  # fmt: skip
    with pytest.raises(UnsupportedError, match="sliding window"):
        opening(window.path, "llama-cpp", anonymous)
    nan = tmp_path / "nan.safetensors"
    name = next(iter(tensors))
    save_file(tensors | {name: torch.full_like(tensors[name], float("nan"))}, nan, metadata=tag)
    with pytest.raises(AdapterError, match="NaN"):
        read_prefix(nan)
    save_file(tensors, nan)
    with pytest.raises(InputError, match="is no prefix of this edgeadapt"):
        opening(gguf, "llama-cpp", nan)
    empty = tmp_path / "empty.safetensors"  # no bytes, and a context of 10^12 positions
    nothing = {name: torch.zeros(0, 1 << 40, 16) for name in tensors}
    save_file(nothing, empty, metadata=tag)
    with pytest.raises(InputError, match="is no prefix of this edgeadapt"):
        opening(gguf, "llama-cpp", empty)
    with pytest.raises(InputError, match="does not exist"):
        opening(gguf, "llama-cpp", tmp_path / "none.safetensors")
    wrong = shutil.copytree(shipped["adapter"], tmp_path / "wrong")
    with pytest.raises(AdapterError, match="for each position"):
        export_prefix(str(tmp_path / "larger"), [wrong], tmp_path / "o.safetensors")
    assert open_artifact(gguf).format == "gguf"


def test_a_prefix_tells_the_system_prompt_of_its_training(tmp_path: Path) -> None:
    numbers = np.zeros((1, 1, 2, 4), np.float32)
    for name, system in (("a", "Be brief."), ("b", None)):
        file = tmp_path / f"{name}.safetensors"
        write_prefix(Prefix(numbers, numbers, None, system), file)
        assert prefix_system(file) == read_prefix(file).system == system
