"""Two adapters on the real model: sound artifacts pass, each planted fault fails its gate."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from edgeadapt.adapters import parse_adapters, stacked_source
from edgeadapt.base_model import resolve_base
from edgeadapt.data.source import resolve_data
from edgeadapt.export import ModelToExport, export, open_model
from edgeadapt.fidelity.evaluate import Yardstick, evaluate, prepare
from edgeadapt.fidelity.gates import Gates, judge, verdict_record
from edgeadapt.fidelity.models import reference_models
from edgeadapt.fidelity.text import held_out_text
from edgeadapt.tokenizer import ModelTokenizer
from edgeadapt.training.settings import TrainSettings
from edgeadapt.weights import Float32Array
from tests.changed_weights import Changed, Zeroed

pytestmark = pytest.mark.e2e

SETTINGS = {
    "qlora": TrainSettings(
        method="qlora", r=8, alpha=16, max_steps=8, max_tokens=96, learning_rate=2e-3
    ),
    "rslora": TrainSettings(
        method="rslora", r=4, alpha=8, max_steps=8, max_tokens=96, learning_rate=1e-3, seed=1
    ),
}


@dataclass(frozen=True)
class Bench:
    """The adapters, and what their artifacts are measured against."""

    adapters: dict[str, Path]
    yardsticks: dict[str, Yardstick]
    folder: Path

    def judged(
        self, name: str, model: ModelToExport, quantization: str, *, runtime: str = "llama-cpp"
    ) -> dict[str, Any]:
        """Export a model, measure it as an artifact of the adapter `name`, and judge it."""
        out = self.folder / "model.gguf"
        artifact = export(model, "gguf", quantization, out)
        try:
            figures = evaluate(artifact, runtime, self.yardsticks[name])
        finally:
            out.unlink()
        return figures | verdict_record(judge(Gates(), figures))

    def config(self, name: str) -> dict[str, Any]:
        """An adapter's configuration."""
        loaded: dict[str, Any] = json.loads(
            (self.adapters[name] / "adapter_config.json").read_text()
        )
        return loaded

    def changed(self, name: str, **config: object) -> Path:
        """A copy of an adapter with another configuration."""
        folder = self.folder / f"{name}-changed"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.adapters[name], folder)
        (folder / "adapter_config.json").write_text(json.dumps(self.config(name) | config))
        return folder


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Adapters trained for a few steps, or found in $EDGEADAPT_TEST_ADAPTERS to save the time."""
    from edgeadapt.training.train import train

    folder = tmp_path_factory.mktemp("fidelity")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEADAPT_CACHE", str(folder / "cache"))
        base = resolve_base("default")
        learn, held_out = resolve_data("python-docs")
        assert held_out is not None
        ready = os.environ.get("EDGEADAPT_TEST_ADAPTERS")
        adapters = {name: Path(ready or folder) / name for name in SETTINGS}
        for name, settings in SETTINGS.items():
            if not adapters[name].exists():
                train(base, learn, None, settings, adapters[name], base_spec="default")
        tokenizer = ModelTokenizer.from_folder(base)
        encoded = held_out_text(held_out, tokenizer, limit=10, max_tokens=96)
        yardsticks = {
            name: prepare(reference_models(base, [adapter]), encoded)
            for name, adapter in adapters.items()
        }
        yield Bench(adapters, yardsticks, folder)


@pytest.fixture(autouse=True)
def keep_cache(bench: Bench, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The quantized base is measured once for all tests of this file."""
    monkeypatch.setenv("EDGEADAPT_CACHE", str(bench.folder / "cache"))


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("quantization", ["F16", "Q8_0", "Q4_K_M"])
def test_sound_artifacts_pass(bench: Bench, name: str, quantization: str) -> None:
    found = bench.judged(name, open_model("default", bench.adapters[name]), quantization)
    assert found["passed"], figures_of(found)


def figures_of(found: dict[str, Any]) -> dict[str, Any]:
    """What a failure should show."""
    judged = {gate["gate"]: gate["figure"] for gate in found["gates"]}
    kept = found["retention"]
    effect = kept["effect"]["quantized_base"] or kept["effect"]["float_base"]
    return judged | {
        "effect": effect["value"],
        "effect_error": effect["standard_error"],
        "beyond_bits": kept["beyond_bits"] and kept["beyond_bits"]["value"],
        "adapter_kl": kept["adapter_kl"]["value"],
        "bits_kl": kept["bits_kl"] and kept["bits_kl"]["value"],
        "kl_kept": kept["kl"]["float_base"]["value"],
    }


def not_applied(bench: Bench) -> ModelToExport:
    return open_model("default")


def alpha_doubled(bench: Bench) -> ModelToExport:
    alpha = 2 * bench.config("qlora")["lora_alpha"]
    return open_model("default", bench.changed("qlora", lora_alpha=alpha))


def rslora_scale_lost(bench: Bench) -> ModelToExport:
    return open_model("default", bench.changed("rslora", use_rslora=False))


class InNf4(Changed):
    """A base whose projections went through NF4, as QLoRA held them in training."""

    def change(self, name: str, rows: Float32Array) -> Float32Array:
        if not name.endswith("_proj.weight"):
            return rows
        import torch
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        stored, state = quantize_4bit(torch.from_numpy(rows), blocksize=64, quant_type="nf4")
        held: Float32Array = dequantize_4bit(stored, state).numpy()
        return held


def wrong_merge_base(bench: Bench) -> ModelToExport:
    """Merged onto the dequantized base of the training, where the original is the better one."""
    plain, adapter = open_model("default"), bench.adapters["qlora"]
    return replace(
        open_model("default", adapter),
        source=stacked_source(InNf4(plain.source), parse_adapters([adapter])),
    )


def layer_zeroed(bench: Bench) -> ModelToExport:
    model = open_model("default", bench.adapters["qlora"])
    return replace(model, source=Zeroed(model.source, 0))


def merged_onto_another_fine_tune(bench: Bench) -> ModelToExport:
    plain, adapter = open_model("default"), bench.adapters["qlora"]
    other = stacked_source(plain.source, parse_adapters([bench.adapters["rslora"]]))
    source = stacked_source(other, parse_adapters([adapter]))
    return replace(open_model("default", adapter), source=source)


def sound(bench: Bench) -> ModelToExport:
    return open_model("default", bench.adapters["qlora"])


@pytest.mark.parametrize(
    ("adapter", "fault", "quantization", "gate"),
    [
        ("qlora", not_applied, "Q8_0", "min_retention"),
        ("qlora", alpha_doubled, "Q8_0", "min_retention"),
        ("rslora", rslora_scale_lost, "Q8_0", "min_retention"),
        ("qlora", wrong_merge_base, "F16", "min_retention"),
        ("qlora", layer_zeroed, "Q8_0", "max_kl"),
        ("qlora", layer_zeroed, "Q4_K_M", "max_excess_kl"),
        ("qlora", merged_onto_another_fine_tune, "Q8_0", "max_excess_kl"),
        # the built-in base comes from a Q4_1 file: rounding to that grid undoes small changes
        ("qlora", sound, "Q4_1", "min_retention"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_each_fault_fails_its_gate(
    bench: Bench, adapter: str, fault: Any, quantization: str, gate: str
) -> None:
    found = bench.judged(adapter, fault(bench), quantization)
    assert gate in found["failed_gates"], figures_of(found)
