"""`export --max-size` from end to end on tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from gguf.constants import GGMLQuantizationType as T
from peft import LoraConfig

from edgeadapt.allocation.allocate import allocate
from edgeadapt.allocation.rounding import rounded
from edgeadapt.artifact import open_artifact
from edgeadapt.cli import cli
from edgeadapt.converters.gguf.ggml import dequantize_rows, quantize_rows
from edgeadapt.export import export, open_model
from edgeadapt.files import cache_dir
from edgeadapt.gguf_io import GgufFile
from edgeadapt.safetensors_io import SafetensorsSource, write_safetensors
from edgeadapt.weights import Float32Array, read_tensor
from tests.adapters.test_merged import save_adapter
from tests.tiny import FAMILIES, save_llama, save_model

pytest.importorskip("llama_cpp")

TEXT = "The quick brown fox jumps over the lazy dog 42 times; def main() returns 7. " * 40


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose file was Q4_1 once, an adapter for it, and text."""
    root = tmp_path_factory.mktemp("allocation")
    plain = save_llama(root / "plain", hidden=64, layers=2)
    base = save_llama(root / "base", hidden=64, layers=2)
    source = SafetensorsSource(plain)

    def read(name: str, start: int, stop: int) -> Float32Array:
        rows = source.rows(name, start, stop)
        if rows.ndim < 2 or "proj" not in name:
            return rows
        return dequantize_rows(quantize_rows(rows, T.Q4_1), T.Q4_1, rows.shape[1])

    (base / "model.safetensors").unlink()
    write_safetensors(base / "model.safetensors", source.tensors(), read, {"format": "pt"})
    config = LoraConfig(r=4, lora_alpha=1, target_modules="all-linear")
    adapter = save_adapter(base, root / "adapter", config)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    settings["lora_alpha"] = 0.1  # small changes, as training makes them: less than half a step
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    (root / "text.txt").write_text(TEXT)
    return root


def run(place: Path, out: Path, *more: object, size: str = "78KiB") -> Result:
    arguments = [
        "export", "--base", place / "base", "--adapter", place / "adapter", "--format", "gguf",
        "--max-size", size, "--calibrate", place / "text.txt", "--out", out, *more,
    ]  # fmt: skip
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def answer(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_a_file_within_the_limit_that_says_how_it_was_made(place: Path, tmp_path: Path) -> None:
    smallest = smallest_bytes(place, tmp_path / "m.gguf")
    size = f"{smallest + 9000}B"
    first = answer(run(place, tmp_path / "a.gguf", "--json", "-q", size=size))
    chosen = first["allocation"]
    assert smallest < first["bytes"] == (tmp_path / "a.gguf").stat().st_size <= smallest + 9000
    assert first["bytes"] == chosen["file_bytes"] > smallest + 7000
    assert first["quantization"] == f"mixed-{size}"
    file = GgufFile(tmp_path / "a.gguf")
    assert {n: file.tensors[n].type.name for n in chosen["types"]} == chosen["types"]
    assert len(set(chosen["types"].values())) > 1
    assert sum(group["nbytes"] for group in chosen["groups"]) < first["bytes"]
    assert 0 < chosen["measured_kl"] < 10 * chosen["predicted_kl"]
    artifact = open_artifact(tmp_path / "a.gguf")
    assert artifact.quantization == first["quantization"]
    assert artifact.lineage["allocation"]["data"]["name"] == "text.txt"
    assert artifact.lineage["allocation"]["measured_kl"] == chosen["measured_kl"]
    assert artifact.lineage["tensor_types"]
    for path in (cache_dir() / "sensitivity").iterdir():
        path.unlink()
    second = answer(run(place, tmp_path / "b.gguf", "--json", "-q", size=size))
    assert second["allocation"] == chosen
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_the_grid_of_the_base_is_seen_and_does_not_erase_the_adapter(
    place: Path, tmp_path: Path
) -> None:
    model = open_model(str(place / "base"), place / "adapter")
    limit = smallest_bytes(place, tmp_path / "m.gguf") + 8000
    chosen = allocate(model, place / "text.txt", f"{limit}B", threads=1)
    made = export(model, "gguf", chosen.mix, tmp_path / "m.gguf", options=chosen.options())
    file = GgufFile(made.path)
    for matrix in chosen.matrices:
        if matrix.role in {"token_embd", "attn_v", "ffn_down"}:  # what was measured is what ships
            (part,) = matrix.plan.parts
            kind, importance = chosen.types[matrix.name], chosen.options().importance
            assert importance is not None
            weights = importance.importance(matrix.name, matrix.plan.shape)
            assert weights is not None
            expected = rounded(read_tensor(model.source, part.name), kind, weights[0])
            np.testing.assert_array_equal(file.rows(matrix.name, 0, len(expected)), expected)
    known, grid = chosen.sensitivity, chosen.grid
    assert known is not None
    assert grid is not None
    assert (grid.levels, grid.block) == (16, 32)
    assert all("token_embd" not in name for name in grid.names)
    assert "quantized before" in str(grid)
    kept = {
        kind: np.mean([known.prices[name][kind].kept for name in grid.names])
        for kind in (T.Q4_1, T.Q8_0)
    }
    assert kept[T.Q4_1] < kept[T.Q8_0] - 0.1
    assert kept[T.Q8_0] == pytest.approx(1, abs=0.05)
    table = chosen.table()
    assert "below the limit" in table
    assert "token_embd" in table


def smallest_bytes(place: Path, out: Path) -> int:
    refused = run(place, out, size="1KiB")
    assert refused.exit_code == 2
    return int(refused.output.split("smallest file is ")[1].split(" ")[0].replace(",", ""))


def test_too_small_and_exactly_the_smallest(place: Path, tmp_path: Path) -> None:
    smallest = smallest_bytes(place, tmp_path / "m.gguf")
    refused = run(place, tmp_path / "m.gguf", size=f"{smallest - 1}B")
    assert refused.exit_code == 2
    assert f"{smallest:,} bytes" in refused.output
    assert not (tmp_path / "m.gguf").exists()
    made = answer(run(place, tmp_path / "m.gguf", "--json", "-q", size=f"{smallest}B"))
    assert made["bytes"] <= smallest


def test_where_all_fits_nothing_is_weighed(place: Path, tmp_path: Path) -> None:
    made = answer(run(place, tmp_path / "m.gguf", "--json", "-q", size="1GiB"))
    assert set(made["allocation"]["types"].values()) == {"F16"}
    assert made["allocation"]["measured_kl"] is None
    assert not (cache_dir() / "sensitivity").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--quant", "Q4_0"], "leave --quant"),
        (["--tensor-type", "ffn=Q8_0"], "leave --quant"),
        (["--max-size", "eighty"], "such as 80MiB"),
        (["--format", "onnx"], "is for --format gguf"),
        (["--calibrate", "nowhere.jsonl"], "does not exist"),
    ],
)
def test_what_is_refused(place: Path, tmp_path: Path, more: list[str], message: str) -> None:
    result = run(place, tmp_path / "m.gguf", *more)
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "m.gguf").exists()


def test_without_text_to_measure_on(place: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        cli,
        ["export", "--base", str(place / "base"), "--format", "gguf", "--max-size", "1MiB",
         "--out", str(tmp_path / "m.gguf")],
    )  # fmt: skip
    assert result.exit_code == 2
    assert "--calibrate DATA" in result.output


@pytest.mark.e2e
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family(family: str, place: Path, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", family)
    model = open_model(str(folder))
    f16 = allocate(model, place / "text.txt", "1GiB").file_bytes
    chosen = allocate(model, place / "text.txt", f"{f16 * 2 // 3}B", threads=1)
    made = export(model, "gguf", chosen.mix, tmp_path / "m.gguf", options=chosen.options())
    assert made.size_bytes == chosen.file_bytes <= f16 * 2 // 3
    assert chosen.measured_kl is not None
