"""Adapters beside a graph: the same logits as merged, back to the base's, and clear refusals."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from peft import LoHaConfig, LoraConfig, PeftConfig

from edgeadapt.artifact import Artifact, open_artifact
from edgeadapt.cli import cli
from edgeadapt.console import log
from edgeadapt.errors import AdapterError, CorruptFileError, EdgeAdaptError, InputError
from edgeadapt.export import export, open_model
from edgeadapt.export_separate import export_adapter, export_with_adapters
from edgeadapt.inspect.onnx import describe_onnx
from edgeadapt.lora_slots import FILE, LoraSlots
from edgeadapt.runtimes import SessionSettings, get_runtime
from tests.adapters.test_merged import ALL, save_adapter
from tests.tiny import save_llama, save_model, save_tokenizer

ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxruntime_genai")

ENGINES = ("onnxruntime", "ort-genai")
IDS = np.random.default_rng(0).integers(3, 320, 60).tolist()
SETTINGS = SessionSettings(threads=1, context=128)

ADAPTERS: dict[str, PeftConfig] = {
    "small": LoraConfig(r=4, lora_alpha=8, target_modules=ALL),
    "wide": LoraConfig(r=12, lora_alpha=6, use_rslora=True, target_modules=["q_proj", "v_proj"]),
    "mixed": LoraConfig(
        r=4, target_modules=["o_proj", "down_proj"], rank_pattern={"down_proj": 7},
        alpha_pattern={"o_proj": 32},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("adapters") / "base", attention_bias=True)


@pytest.fixture(scope="module")
def peft(base: Path) -> dict[str, Path]:
    root = base.parent / "peft"
    return {n: save_adapter(base, root / n, c, seed=i) for i, (n, c) in enumerate(ADAPTERS.items())}


@pytest.fixture(scope="module")
def folder(base: Path, peft: dict[str, Path]) -> Path:
    out = base.parent / "separate"
    export_with_adapters(str(base), list(peft.values()), "fp32", out, threads=1)
    return out


@pytest.fixture(scope="module")
def merged(base: Path, peft: dict[str, Path]) -> dict[str, np.ndarray]:
    """Logits of the merged graphs, and under "" of the base's."""
    found = {}
    for name, adapter in {"": None, **peft}.items():
        out = base.parent / f"merged-{name}"
        artifact = export(open_model(str(base), adapter), "onnx", "fp32", out)
        found[name] = get_runtime("onnxruntime").load(artifact, SETTINGS).all_logits(IDS)
    return found


def file_of(folder: Path, name: str) -> Path:
    return folder / "adapters" / f"{name}.onnx_adapter"


@pytest.mark.parametrize("engine", ENGINES)
def test_switching_equals_merged(engine: str, folder: Path, merged: dict[str, np.ndarray]) -> None:
    session = get_runtime(engine).load(open_artifact(folder), SETTINGS)
    untouched = session.all_logits(IDS)
    assert np.abs(untouched - merged[""]).max() < 1e-5
    for name in ("small", "wide", "mixed", "small"):
        session.use_adapter(file_of(folder, name))
        assert session.position == 0
        assert np.abs(merged[name] - untouched).max() > 1e-2
        assert np.abs(session.all_logits(IDS) - merged[name]).max() < 1e-4
        session.reset()
        for start, stop in ((0, 40), (40, 41), (41, 60)):
            session.forward(IDS[start:stop])
            assert np.abs(session.last_logits() - merged[name][stop - 1]).max() < 1e-4
    session.use_adapter(None)
    np.testing.assert_array_equal(session.all_logits(IDS), untouched)
    session.close()


def test_plain_run_options(folder: Path, merged: dict[str, np.ndarray]) -> None:
    """What an app does that has onnxruntime and nothing else."""
    session = ort.InferenceSession(str(folder / "model.onnx"))
    ids = np.array([IDS])
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    for entry in session.get_inputs():
        if entry.name.startswith("past"):
            feeds[entry.name] = np.zeros((1, entry.shape[1], 0, entry.shape[3]), np.float32)
    (untouched,) = session.run(["logits"], feeds)
    for name in ADAPTERS:
        adapter, options = ort.LoraAdapter(), ort.RunOptions()
        adapter.Load(str(file_of(folder, name)))
        options.add_active_adapter(adapter)
        (found,) = session.run(["logits"], feeds, options)
        assert np.abs(found[0] - merged[name]).max() < 1e-4
    np.testing.assert_array_equal(session.run(["logits"], feeds)[0], untouched)


@pytest.mark.parametrize("engine", ENGINES)
def test_several_adapters_on_int4(
    engine: str, base: Path, peft: dict[str, Path], tmp_path: Path, merged: dict[str, np.ndarray]
) -> None:
    chosen = [peft["small"], peft["wide"]]
    artifact = export_with_adapters(str(base), chosen, "int4", tmp_path / "int4", threads=1)
    session = get_runtime(engine).load(artifact, SETTINGS)
    for name in ("small", "wide"):
        session.use_adapter(file_of(artifact.path, name))
        error = np.abs(session.all_logits(IDS) - merged[name]).mean()
        assert 0 < error < 0.5 * merged[name].std()


@pytest.mark.parametrize("engine", ENGINES)
def test_one_more_adapter_for_a_graph(
    engine: str, base: Path, folder: Path, tmp_path: Path
) -> None:
    config = LoraConfig(r=9, lora_alpha=20, target_modules=["k_proj", "gate_proj"])
    later = save_adapter(base, tmp_path / "later", config, seed=9)
    made = export_adapter(str(base), [later], "onnx", None, tmp_path / "later.onnx_adapter")
    expected = export(open_model(str(base), later), "onnx", "fp32", tmp_path / "merged")
    wanted = get_runtime(engine).load(expected, SETTINGS).all_logits(IDS)
    session = get_runtime(engine).load(open_artifact(folder), SETTINGS)
    session.use_adapter(made.path)
    assert np.abs(session.all_logits(IDS) - wanted).max() < 1e-4


PHI = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
FAMILIES = {
    "phi3": PHI, "qwen2": ALL, "qwen3": ALL, "gemma2": ALL, "gemma3": [*ALL, "o_proj"],
    "mistral": ["q_proj", "up_proj"],
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str, tmp_path: Path) -> None:
    """Also where the checkpoint keeps q, k and v, or gate and up, in one tensor."""
    model = save_model(tmp_path / "model", family)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=FAMILIES[family])
    adapter = save_adapter(model, tmp_path / "adapter", config)
    merged = export(open_model(str(model), adapter), "onnx", "fp32", tmp_path / "merged")
    wanted = get_runtime("onnxruntime").load(merged, SETTINGS).all_logits(IDS)
    separate = export_with_adapters(str(model), [adapter], "fp32", tmp_path / "out", threads=1)
    session = get_runtime("onnxruntime").load(separate, SETTINGS)
    assert np.abs(session.all_logits(IDS) - wanted).max() > 1e-2
    session.use_adapter(file_of(separate.path, "adapter"))
    assert np.abs(session.all_logits(IDS) - wanted).max() < 2e-4


def test_folder_says_what_it_takes(folder: Path, base: Path) -> None:
    slots = LoraSlots.read(folder)
    assert slots.products["model.layers.1.mlp.down_proj"] == (96, 64)
    assert len(slots.products) == 2 * 7
    lineage = open_artifact(folder).lineage
    assert lineage["mode"] == "separate"
    assert [adapter["name"] for adapter in lineage["adapters"]] == list(ADAPTERS)
    described = describe_onnx(folder)["adapters"]
    assert described["products"] == 14
    assert sorted(described["files"]) == sorted(f"{name}.onnx_adapter" for name in ADAPTERS)
    files = json.loads((folder / "edgeadapt.json").read_text())["files"]
    assert {FILE, "adapters/small.onnx_adapter"} <= set(files)


def _truncated(good: Path, bad: Path, base: Path) -> None:
    bad.write_bytes(good.read_bytes()[:200])


def _garbage(good: Path, bad: Path, base: Path) -> None:
    bad.write_bytes(b"\x13\x37" * 500)


def _missing(good: Path, bad: Path, base: Path) -> None:
    pass


def _changed(
    change: Callable[[dict[str, np.ndarray]], None], version: int | None = None
) -> Callable[[Path, Path, Path], None]:
    def damage(good: Path, bad: Path, base: Path) -> None:
        adapter = ort.AdapterFormat.read_adapter(str(good))
        values = {name: value.numpy() for name, value in adapter.get_parameters().items()}
        change(values)
        made = ort.AdapterFormat()
        made.set_adapter_version(1)
        made.set_model_version(adapter.get_model_version() if version is None else version)
        made.set_parameters(
            {name: ort.OrtValue.ortvalue_from_numpy(v) for name, v in values.items()}
        )
        made.export_adapter(str(bad))

    return damage


A = "model.layers.0.attn.q_proj.lora_A.weight"


def _wrong_rank(values: dict[str, np.ndarray]) -> None:
    values[A] = np.ascontiguousarray(values[A][:, :-1])


def _wrong_width(values: dict[str, np.ndarray]) -> None:
    values[A] = np.ascontiguousarray(values[A][:-1])


def _unknown_name(values: dict[str, np.ndarray]) -> None:
    values["model.layers.9.attn.q_proj.lora_A.weight"] = values[A]


def _half(values: dict[str, np.ndarray]) -> None:
    del values[A]


def _float16(values: dict[str, np.ndarray]) -> None:
    values[A] = values[A].astype(np.float16)


DAMAGES = {
    "missing": (_missing, InputError, "no file"),
    "truncated": (_truncated, CorruptFileError, "not an adapter"),
    "garbage": (_garbage, CorruptFileError, "not an adapter"),
    "wrong rank": (_changed(_wrong_rank), AdapterError, "rank 3 in A and 4 in B"),
    "wrong width": (_changed(_wrong_width), AdapterError, "another graph"),
    "unknown product": (_changed(_unknown_name), AdapterError, r"layers\.9"),
    "half": (_changed(_half), AdapterError, "lacks A or B"),
    "float16": (_changed(_float16), AdapterError, r"takes tensor\(float\)"),
    "other base": (_changed(lambda _: None, version=7), AdapterError, "another base"),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", DAMAGES)
def test_what_does_not_fit_is_refused(
    name: str, engine: str, folder: Path, base: Path, tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    damage, error, text = DAMAGES[name]
    bad = tmp_path / "bad.onnx_adapter"
    damage(file_of(folder, "small"), bad, base)
    session = get_runtime(engine).load(open_artifact(folder), SETTINGS)
    before = session.all_logits(IDS)
    with pytest.raises(error, match=text):
        session.use_adapter(bad)
    np.testing.assert_array_equal(session.all_logits(IDS), before)
    assert capfd.readouterr().out == ""
    command = ["chat", folder, "--runtime", engine, "--prompt", "hi", "--adapter", bad]
    said = CliRunner().invoke(cli, [str(argument) for argument in command])
    assert said.exit_code == 2
    assert re.search(text, said.stderr) and said.stderr.count("\n") == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_graph_without_slots(engine: str, base: Path, folder: Path, merged: object) -> None:
    plain = open_artifact(base.parent / "merged-")
    session = get_runtime(engine).load(plain, SETTINGS)
    with pytest.raises(AdapterError, match="takes no adapters"):
        session.use_adapter(file_of(folder, "small"))


def test_other_runtimes_say_that_they_cannot(base: Path, folder: Path) -> None:
    session = get_runtime("torch").load(Artifact(base, "hf", "float32"), SETTINGS)
    with pytest.raises(EdgeAdaptError, match="cannot use the adapter"):
        session.use_adapter(file_of(folder, "small"))


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (LoHaConfig(r=4, target_modules=["q_proj"]), "two small matrices"),
        (LoraConfig(r=4, use_dora=True, target_modules=["q_proj"]), "DoRA"),
        (LoraConfig(r=4, target_modules=["embed_tokens"]), "merge it"),
    ],
)
def test_more_than_a_lora(base: Path, tmp_path: Path, config: PeftConfig, text: str) -> None:
    adapter = save_adapter(base, tmp_path / "adapter", config)
    with pytest.raises(InputError, match=text):
        export_with_adapters(str(base), [adapter], "fp32", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def with_texts(adapter: Path, out: Path, opening: str) -> Path:
    """A copy that was saved with a tokenizer, and a template that begins each text with a word."""
    shutil.copytree(adapter, out)
    save_tokenizer(out)
    path = out / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["chat_template"] = opening + config["chat_template"]
    path.write_text(json.dumps(config))
    return out


def test_texts_of_the_adapter_ship(base: Path, peft: dict[str, Path], tmp_path: Path) -> None:
    own = with_texts(peft["small"], tmp_path / "own", "Own: ")
    command = ["export", "--base", base, "--format", "onnx", "--adapter-mode", "separate",
               "--quant", "fp32", "--json"]  # fmt: skip
    out = tmp_path / "out"
    arguments = [*command, "--adapter", own, "--adapter", peft["wide"], "--out", out]
    made = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert made.exit_code == 0, made.output
    assert "wide was saved without a tokenizer" in made.stderr
    parity = json.loads(made.stdout)["parity"]
    assert parity["passed"] and not parity["unchecked"]
    for engine in ENGINES:
        session = get_runtime(engine).load(open_artifact(out), SETTINGS)
        assert session.render([{"role": "user", "content": "hi"}]).startswith("Own: <|im_start|>")


def test_adapters_with_different_texts(
    base: Path, peft: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """One that was saved with the base's own texts disagrees with one that brings others."""
    own = with_texts(peft["small"], tmp_path / "own", "Own: ")
    as_base = with_texts(peft["wide"], tmp_path / "as-base", "")
    with pytest.raises(AdapterError, match=r"own and as-base .*a folder for each"):
        export_with_adapters(str(base), [as_base, own], "fp32", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(log, "propagate", True)
    export_adapter(str(base), [own], "onnx", None, tmp_path / "own.onnx_adapter")
    assert "another tokenizer or chat template" in caplog.text


@pytest.mark.parametrize("more", [["--algorithm", "rtn"], ["--exporter", "stream"], ["--parity"]])
@pytest.mark.parametrize("format", ["gguf", "onnx"])
def test_a_file_takes_no_options_of_a_graph(
    base: Path, peft: dict[str, Path], tmp_path: Path, format: str, more: list[str]
) -> None:
    out = tmp_path / ("a.gguf" if format == "gguf" else "a.onnx_adapter")
    command = ["export", "--base", base, "--adapter", peft["small"], "--adapter-mode", "separate",
               "--format", format, "--out", out, *more]  # fmt: skip
    made = CliRunner().invoke(cli, [str(argument) for argument in command])
    assert made.exit_code == 2 and "leave --parity" in made.stderr
    assert not out.exists()


def test_command_line(base: Path, peft: dict[str, Path], tmp_path: Path) -> None:
    run, out = CliRunner(), tmp_path / "out"
    command = ["export", "--base", str(base), "--format", "onnx", "--adapter-mode", "separate"]
    both = ["--adapter", str(peft["small"]), "--adapter", str(peft["wide"])]
    made = run.invoke(cli, [*command, *both, "--quant", "fp32", "--out", str(out), "--json"])
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["lineage"]["mode"] == "separate"
    alone = tmp_path / "one.onnx_adapter"
    made = run.invoke(cli, [*command, "--adapter", str(peft["mixed"]), "--out", str(alone)])
    assert made.exit_code == 0, made.output
    other = ["--adapter", str(peft["wide"]), "--quant", "fp32", "--out", str(tmp_path / "other")]
    assert run.invoke(cli, [*command, *other]).exit_code == 0
    talk = ["chat", str(out), "--prompt", "hi", "--max-tokens", "3", "--context", "64"]
    good = run.invoke(cli, [*talk, "--adapter", str(file_of(out, "small"))])
    assert good.exit_code == 0, good.output
    alone_there = ["chat", str(tmp_path / "other"), *talk[2:], "--adapter", str(alone)]
    bad = run.invoke(cli, alone_there)
    assert bad.exit_code == 2
    assert "takes no adapter for" in bad.output
    shutil.rmtree(out / "adapters")
    gone = run.invoke(cli, [*talk, "--adapter", str(file_of(out, "small"))])
    assert gone.exit_code == 2
    assert "no file" in gone.output
