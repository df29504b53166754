"""The statistics are those of the inputs that each layer sees, adapter and all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from peft import LoraConfig

from edgeadapt.calibration import cached_imatrix, make_imatrix
from edgeadapt.calibration.activations import collect
from edgeadapt.calibration.text import token_chunks
from edgeadapt.cli import cli
from edgeadapt.converters.gguf.imatrix import read_imatrix
from edgeadapt.errors import CorruptFileError, InputError
from edgeadapt.export import open_model
from edgeadapt.tokenizer import ModelTokenizer
from tests.adapters.test_merged import live_model, save_adapter
from tests.meanwhile import touching
from tests.tiny import save_model

TEXT = "The quick brown fox jumps over the lazy dog 42 times. " * 12


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "words.txt"
    path.write_text(TEXT)
    return path


@torch.no_grad()
def test_entries_are_sums_of_squared_inputs(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj", "gate_proj"])
    adapter = save_adapter(tiny_model, tmp_path / "a", config)
    made = make_imatrix(open_model(str(tiny_model), adapter), data, tmp_path / "i.gguf", chunks=2)
    tokenizer = ModelTokenizer.from_folder(tiny_model)
    chunks = token_chunks(data, tokenizer, 2)
    assert sum(len(chunk) for chunk in chunks) <= 2 * 512
    seen: dict[str, torch.Tensor] = {}
    live = live_model(tiny_model, adapter)
    layer = live.base_model.model.model.layers[1]  # type: ignore[union-attr, index]
    modules = {
        "attn_q": layer.self_attn.q_proj, "attn_output": layer.self_attn.o_proj,
        "ffn_gate": layer.mlp.gate_proj, "ffn_down": layer.mlp.down_proj,
    }  # fmt: skip
    for name, module in modules.items():
        module.register_forward_pre_hook(
            lambda _, inputs, name=name: seen.__setitem__(
                name, seen.get(name, 0) + inputs[0].double().square().sum((0, 1))
            )
        )
    for chunk in chunks:
        live(input_ids=torch.tensor([chunk]))
    for name, sums in seen.items():
        entry = made.entries[f"blk.1.{name}.weight"]
        np.testing.assert_allclose(entry.sums[0], sums.numpy(), rtol=1e-4)
        assert entry.counts.tolist() == [sum(len(chunk) for chunk in chunks)]
    assert len(made.entries) == 14
    assert made.chunk_count == len(chunks) and made.chunk_size == 512
    read = read_imatrix(tmp_path / "i.gguf")
    np.testing.assert_array_equal(
        read.entries["blk.0.ffn_up.weight"].sums, read.entries["blk.0.ffn_gate.weight"].sums
    )


@pytest.mark.parametrize("family", ["mixtral", "qwen3moe"])
def test_experts_count_what_was_sent_to_them(family: str, data: Path, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "m", family)
    made = make_imatrix(open_model(str(folder)), data, tmp_path / "i.gguf", chunks=1)
    tokens = made.entries["blk.0.attn_q.weight"].counts[0]
    for part in ("gate", "up", "down"):
        entry = made.entries[f"blk.1.ffn_{part}_exps.weight"]
        assert entry.counts.shape == (4,) and entry.counts.sum() == 2 * tokens
    assert entry.sums.shape[0] == 4 and len({float(row[0]) for row in entry.sums}) == 4


@pytest.mark.parametrize("family", ["gemma3", "phi3", "olmo2"])
def test_every_matrix_of_a_family_is_covered(family: str, data: Path, tmp_path: Path) -> None:
    from edgeadapt.calibration.build import gguf_names

    folder = save_model(tmp_path / "m", family)
    model = open_model(str(folder))
    made = make_imatrix(model, data, tmp_path / "i.gguf", chunks=1)
    wanted = {name for names in gguf_names(model.source).values() for name in names}
    assert made.entries.keys() == wanted


def test_chunks_are_spread_over_the_data(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = ModelTokenizer.from_folder(tiny_model)
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps({"text": f"{n} " * 9}) + "\n" for n in range(100, 160)))
    every = token_chunks(path, tokenizer, 1000, chunk_tokens=32)
    some = token_chunks(path, tokenizer, 4, chunk_tokens=32)
    assert len(every) > 4 and len(some) == 4 and all(len(chunk) <= 32 for chunk in every)
    start = tokenizer.encode("100 " * 9)
    assert [*every[0], *every[1]][: len(start)] == start
    assert "145" in tokenizer.decode(some[-1]).replace(" ", "")  # three quarters on


def test_no_text_is_an_error(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = ModelTokenizer.from_folder(tiny_model)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(InputError, match="no text"):
        token_chunks(tmp_path / "empty.txt", tokenizer, 5)
    with pytest.raises(CorruptFileError, match="UTF-8"):
        token_chunks(tmp_path / "bytes.txt", tokenizer, 5)
    with pytest.raises(InputError, match="cannot read"):
        token_chunks(tmp_path / "none.txt", tokenizer, 5)


def run(*arguments: str | Path) -> dict[str, object]:
    result = CliRunner().invoke(cli, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    record: dict[str, object] = json.loads(result.stdout)
    return record


def test_from_the_command_line(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    made = run(
        "imatrix", "--base", tiny_model, "--data", data, "--chunks", "2",
        "--out", tmp_path / "i.gguf",
    )  # fmt: skip
    assert made["entries"] == 14
    common = ("export", "--base", tiny_model, "--format", "gguf", "--quant", "Q2_K_S")
    two = run(*common, "--imatrix", tmp_path / "i.gguf", "--out", tmp_path / "a.gguf")
    planned = run(*common, "--calibrate", data, "--out", tmp_path / "b.gguf", "--dry-run")
    assert not (tmp_path / "b.gguf").exists()
    one = run(*common, "--calibrate", data, "--out", tmp_path / "b.gguf")
    assert planned["output_bytes"] == one["bytes"] and planned["exact"] is True
    assert one["lineage"]["imatrix"]["datasets"] == ["words.txt"]  # type: ignore[index]
    assert two["lineage"]["imatrix"]["name"] == "i.gguf"  # type: ignore[index]
    result = CliRunner().invoke(
        cli,
        [*map(str, common), "--imatrix", str(data), "--calibrate", str(data), "--out", "x.gguf"],
    )
    assert result.exit_code == 2 and "not both" in result.output


@pytest.mark.parametrize("changed", ["base/config.json", "words.txt"])
def test_none_is_kept_of_what_was_changed_meanwhile(
    changed: str, tiny_model: Path, data: Path, own_cache: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    shutil.copytree(tiny_model, tmp_path / "base")
    shutil.copyfile(data, tmp_path / "words.txt")

    changing = touching(tmp_path / changed, collect)
    monkeypatch.setattr("edgeadapt.calibration.activations.collect", changing)
    model = open_model(str(tmp_path / "base"))
    with pytest.raises(InputError, match="was changed while it was used"):
        cached_imatrix(model, tmp_path / "words.txt", chunks=1)
    assert not list(own_cache.rglob("*imatrix*.gguf"))


def test_calibration_is_cached(
    tiny_model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(str(tiny_model))
    first = cached_imatrix(model, data, chunks=1)
    monkeypatch.setattr("edgeadapt.calibration.build.make_imatrix", None)
    again = cached_imatrix(model, data, chunks=1)
    assert first.sha256 == again.sha256 and again.name == "words-imatrix.gguf"
