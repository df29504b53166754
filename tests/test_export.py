"""Export and merge as library calls: what is written is what was trained, or nothing is."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from peft import LoraConfig

from edgeadapt import export_separate
from edgeadapt import merge as merge_module
from edgeadapt.artifact import Artifact, open_artifact
from edgeadapt.base_model import base_hash
from edgeadapt.cli import cli
from edgeadapt.cli.chat_ import _trained_under
from edgeadapt.converters.adapter_files import get_adapter_writer
from edgeadapt.errors import AdapterError, CorruptFileError, InputError
from edgeadapt.export import export, open_model
from edgeadapt.export_separate import export_adapter
from edgeadapt.merge import merge_to_folder
from edgeadapt.pipeline.evaluation import subject_of
from edgeadapt.safetensors_io import SafetensorsSource
from edgeadapt.weights import read_tensor
from tests.adapters.test_merged import ALL, assert_same_logits, live_model, save_adapter
from tests.meanwhile import touching


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = LoraConfig(r=4, lora_alpha=8, target_modules=ALL)
    return save_adapter(tiny_model, tmp_path_factory.mktemp("adapters") / "mine", config)


def test_merged_folder_loads_in_transformers(
    tiny_model: Path, adapter: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    artifact = merge_to_folder(open_model(str(tiny_model), adapter), tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert_same_logits(live_model(tiny_model, adapter), merged)
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template
    assert artifact.lineage["adapter"]["method"] == "lora"
    assert open_artifact(tmp_path / "merged").lineage == artifact.lineage


def test_an_untied_head_is_written_and_declared(tiny_model: Path, tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules=["lm_head"])
    adapter = save_adapter(tiny_model, tmp_path / "a", config)
    merge_to_folder(open_model(str(tiny_model), adapter), tmp_path / "m")
    assert json.loads((tmp_path / "m/config.json").read_text())["tie_word_embeddings"] is False
    assert "lm_head.weight" in SafetensorsSource(tmp_path / "m").tensors()


def test_big_models_are_written_in_shards(
    tiny_model: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(str(tiny_model), adapter)
    merge_to_folder(model, tmp_path / "one")
    monkeypatch.setattr(merge_module, "MAX_SHARD_BYTES", 100_000)
    merge_to_folder(model, tmp_path / "many")
    assert len(list((tmp_path / "many").glob("model-*.safetensors"))) > 1
    one, many = SafetensorsSource(tmp_path / "one"), SafetensorsSource(tmp_path / "many")
    assert list(one.tensors()) == list(many.tensors())
    for name in one.tensors():
        np.testing.assert_array_equal(read_tensor(one, name), read_tensor(many, name))


def record(adapter: Path, out: Path, **fields: object) -> Path:
    """A copy of the adapter that says what it was trained on."""
    shutil.copytree(adapter, out)
    (out / "edgeadapt.json").write_text(json.dumps({"schema_version": 1, **fields}))
    return out


def test_an_adapter_for_another_base_is_refused(
    tiny_model: Path, adapter: Path, tmp_path: Path
) -> None:
    other = record(adapter, tmp_path / "other", base_hash="0" * 64)
    with pytest.raises(AdapterError, match="--any-base"):
        open_model(str(tiny_model), other)
    assert open_model(str(tiny_model), other, any_base=True).lineage["adapter"]
    right = record(adapter, tmp_path / "right", base_hash=base_hash(tiny_model), method="qlora")
    assert open_model(str(tiny_model), right).lineage["adapter"]["training"]["method"] == "qlora"


def test_a_model_is_no_adapter(tiny_model: Path) -> None:
    with pytest.raises(InputError, match="--base"):
        open_model(str(tiny_model), tiny_model)


def test_lineage_names_base_and_adapter_by_hash(
    tiny_model: Path, adapter: Path, tmp_path: Path
) -> None:
    pytest.importorskip("llama_cpp")
    export(open_model(str(tiny_model), adapter), "gguf", "Q8_0", tmp_path / "m.gguf")
    lineage = open_artifact(tmp_path / "m.gguf").lineage
    assert lineage["base"]["sha256"] == base_hash(tiny_model)
    assert lineage["merge"] == {"onto": "original", "precision": "float32"}
    assert lineage["quantization"] == "Q8_0"


def test_inputs_are_left_as_they_were(tiny_model: Path, adapter: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")

    def state(folder: Path) -> dict[str, tuple[int, bytes]]:
        return {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.iterdir()}

    before = state(tiny_model), state(adapter)
    export(open_model(str(tiny_model), adapter), "gguf", "Q4_0", tmp_path / "m.gguf")
    assert (state(tiny_model), state(adapter)) == before


def test_a_model_that_was_trained_whole_is_asked_as_it_was_trained(
    tiny_model: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "full")
    record = {"kind": "training", "schema_version": 1, "settings": {"system": "Be brief."}}
    (folder / "edgeadapt.json").write_text(json.dumps(record))
    assert open_artifact(folder).system == subject_of(folder, []).system == "Be brief."
    assert open_artifact(tiny_model).system is None


def test_of_adapters_beside_a_graph_the_active_one_tells_the_system_prompt(tmp_path: Path) -> None:
    adapters = [{"name": "a", "training": {"system": "Be brief."}}, {"name": "b", "training": {}}]
    lineage = {"mode": "separate", "adapters": adapters}
    Artifact(tmp_path, "onnx", "int4", lineage).write_manifest()
    found = [
        _trained_under(tmp_path, name and tmp_path / f"{name}.onnx_adapter")
        for name in ("a", "b", None)
    ]
    assert found == ["Be brief.", None, None]


@pytest.mark.parametrize("kind", ["gguf", "folder", "lora"])
@pytest.mark.parametrize(
    "changed", ["base/model.safetensors", "base/tokenizer.json", "mine/adapter_model.safetensors"]
)
def test_nothing_is_made_of_inputs_that_are_changed_meanwhile(
    kind: str, changed: str, tiny_model: Path, adapter: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    shutil.copytree(tiny_model, tmp_path / "base")
    shutil.copytree(adapter, tmp_path / "mine")
    model = open_model(str(tmp_path / "base"), tmp_path / "mine")
    (tmp_path / "base/notes.txt").write_text("others may come and go")
    rows = touching(tmp_path / changed, SafetensorsSource.rows)
    monkeypatch.setattr(SafetensorsSource, "rows", rows)
    writer = touching(tmp_path / changed, get_adapter_writer("gguf"))
    monkeypatch.setattr(export_separate, "get_adapter_writer", lambda _: writer)
    with pytest.raises(InputError, match=f"{Path(changed).name} was changed while it was used"):
        if kind == "lora":
            export_adapter(
                str(tmp_path / "base"), [tmp_path / "mine"], "gguf", None, tmp_path / "out"
            )
        elif kind == "gguf":
            export(model, "gguf", "Q8_0", tmp_path / "out")
        else:
            merge_to_folder(model, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "mine"}


def test_truncated_base_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CorruptFileError, match="safetensors"):
        open_model(str(broken))


def test_a_model_that_edgeadapt_made_says_from_what(
    tiny_model: Path, adapter: Path, tmp_path: Path
) -> None:
    merged = merge_to_folder(open_model(str(tiny_model), adapter), tmp_path / "merged")
    assert open_model(str(merged.path)).lineage["made_from"] == merged.lineage
    shutil.copytree(tiny_model, tmp_path / "full")
    (tmp_path / "full/edgeadapt.json").write_text(
        json.dumps(
            {
                "kind": "training",
                "schema_version": 1,
                "base": "/home/somebody/base",
                "base_hash": "0" * 64,
                "method": "full",
                "steps": 7,
            }
        )
    )
    assert open_model(str(tmp_path / "full")).lineage["training"] == {
        "base": {"name": "base", "sha256": "0" * 64},
        "method": "full",
        "steps": 7,
    }
    assert open_artifact(tmp_path / "full").format == "hf"


def test_what_was_trained_under_a_system_prompt_says_so_and_is_asked_under_it(
    tiny_model: Path, adapter: Path, tmp_path: Path
) -> None:
    pytest.importorskip("llama_cpp")
    taught = tmp_path / "taught"
    shutil.copytree(adapter, taught)
    record = {"quantization": "float32", "settings": {"system": "Be 'brief'."}}
    (taught / "edgeadapt.json").write_text(json.dumps(record))
    out = tmp_path / "m.gguf"
    arguments = ["export", "--base", tiny_model, "--adapter", taught, "--format", "gguf"]
    arguments += ["--quant", "Q8_0", "--no-parity", "--out", out]
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.stderr
    words = shlex.split(done.stdout.splitlines()[-1].removeprefix("try it: edgeadapt "))
    assert words == ["chat", str(out)]

    def told(*options: str | Path) -> bool:
        asked = [*options, "--prompt", "The fox?", "--max-tokens", "2", "--json"]
        done = CliRunner().invoke(cli, ["chat", *map(str, asked)])
        assert done.exit_code == 0, done.stderr
        return "(--system sets another): Be 'brief'." in done.stderr

    assert told(out)
    assert not told(out, "--system", "") and not told(out, "--system", "Be verbose.")
    lora, base = tmp_path / "lora.gguf", tmp_path / "base.gguf"
    for options in (["--out", lora, "--adapter-mode", "separate"], ["--out", base]):
        words = [*arguments[:-2], *options]
        if base in options:
            words.remove("--adapter")
            words.remove(taught)
        done = CliRunner().invoke(cli, [str(word) for word in words])
        assert done.exit_code == 0, done.stderr
    assert told(base, "--adapter", lora) and not told(base)
    assert told(tiny_model, "--adapter", taught) and not told(tiny_model)
    merge_to_folder(open_model(str(tiny_model), taught), tmp_path / "merged")
    export(open_model(str(tmp_path / "merged")), "gguf", "Q8_0", tmp_path / "again.gguf")
    assert told(tmp_path / "merged") and told(tmp_path / "again.gguf")
    assert subject_of(tmp_path / "merged", []).system == "Be 'brief'."
    assert open_artifact(out).system == "Be 'brief'."
    assert Artifact(out, "gguf", "Q8_0").system is None
    both = [{"training": {"system": text}} for text in "ab"]
    assert Artifact(out, "gguf", "Q8_0", {"adapters": both}).system is None
