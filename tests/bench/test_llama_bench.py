"""llama-bench's JSON is read, whatever is in it, and written as llama-bench writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from gguf import GGUFReader
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeadapt.bench.llama_bench import as_llama_bench, read_llama_bench
from edgeadapt.bench.run import bench_artifact
from edgeadapt.bench.table import render
from edgeadapt.cli import cli
from edgeadapt.errors import CorruptFileError, EdgeAdaptError, InputError

# As llama-bench b1-0c1e570 prints it (the fields that tell of a test; all others are kept).
COMMON = {
    "build_commit": "0c1e570", "build_number": 1, "cpu_info": "Cortex-A76", "gpu_info": "",
    "backends": "CPU", "model_filename": "/sdcard/m.Q4_0.gguf", "model_type": "llama 256M Q4_0",
    "model_size": 96576768, "model_n_params": 134515008, "n_batch": 2048, "n_ubatch": 512,
    "n_threads": 4, "cpu_mask": "0x0", "cpu_strict": False, "poll": 50, "type_k": "f16",
    "type_v": "f16", "n_gpu_layers": -1, "n_cpu_moe": 0, "split_mode": "layer", "main_gpu": 0,
    "no_kv_offload": False, "flash_attn": -1, "devices": "auto", "tensor_split": "0.00",
    "tensor_buft_overrides": "none", "load_mode": "auto", "lazy_mode": "auto",
    "embeddings": False, "no_op_offload": 0, "no_host": False, "repack": True, "fit_target": 0,
    "fit_min_ctx": 0,
}  # fmt: skip
PREFILL = {
    "n_prompt": 8, "n_gen": 0, "n_depth": 0, "test_time": "2026-11-25T18:27:36Z",
    "avg_ns": 163592142, "stddev_ns": 11046211, "avg_ts": 49.01384, "stddev_ts": 3.309555,
    "samples_ns": [171402993, 155781291], "samples_ts": [46.6736, 51.354],
}  # fmt: skip
DECODE = PREFILL | {"n_prompt": 0, "n_gen": 4, "samples_ts": [20.0, 22.0, 30.0]}
DEEP = DECODE | {"n_depth": 512, "samples_ts": [10.0]}


def test(**changes: Any) -> dict[str, Any]:
    return COMMON | DECODE | changes


test.__test__ = False  # type: ignore[attr-defined]


@pytest.fixture
def board(tmp_path: Path) -> Path:
    path = tmp_path / "board.json"
    path.write_text(json.dumps([COMMON | PREFILL, COMMON | DECODE, COMMON | DEEP]))
    return path


def test_tests_of_one_setting_are_one_record(board: Path) -> None:
    (found,) = read_llama_bench(board)
    assert (found.model, found.threads, found.backends) == ("/sdcard/m.Q4_0.gguf", 4, "CPU")
    assert (found.build, found.parameters) == ("b1-0c1e570", 134515008)
    assert [(s.tokens, s.depth, s.tps.median) for s in found.decode] == [(4, 0, 22.0), (4, 512, 10)]
    (prefill,) = found.prefill
    assert prefill.tps.samples == (46.6736, 51.354)


def test_other_settings_are_other_records(tmp_path: Path) -> None:
    path = tmp_path / "board.jsonl"  # llama-bench -o jsonl
    both = test(n_prompt=8)
    path.write_text("\n".join(map(json.dumps, (test(), test(n_threads=2), both))) + "\n")
    two, four = read_llama_bench(path)
    assert (two.threads, two.skipped) == (2, 0)
    assert (four.threads, four.skipped, len(four.decode)) == (4, 1, 1)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", "no tests"),
        ("[]", "no tests"),
        ("[" * 100_000, "not JSON"),
        ("| model | size |", "not JSON"),
        ("[1]", "test 0"),
        ("null", "test 0"),
        (json.dumps([test(), test(n_threads="many")]), "test 1: n_threads"),
        (json.dumps([test(samples_ts=[])]), "samples_ts"),
        (json.dumps([test(samples_ts=[1, float("inf")])]), "samples_ts.1"),
        (json.dumps([test(samples_ts=[0])]), "samples_ts.0"),
        (json.dumps([test(n_gen=10**400)]), "n_gen"),
        ('[{"n_gen": ' + "9" * 10_000 + "}]", "not JSON"),
        (json.dumps([test(model_filename="x" * 5000)]), "model_filename"),
        (json.dumps([COMMON]), "n_prompt"),
    ],
)
def test_anything_else_is_refused_with_its_place(tmp_path: Path, text: str, where: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(CorruptFileError, match=where) as caught:
        read_llama_bench(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json"):
        read_llama_bench(tmp_path / "none.json")


def test_escape_sequences_do_not_reach_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "board.json"
    path.write_text(json.dumps([test(model_filename="m\x1b[31m.gguf", cpu_info="a\nb\x07")]))
    text = render(read_llama_bench(path))
    assert "\x1b" not in text
    assert "\x07" not in text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(field=st.sampled_from(sorted(COMMON | DECODE)), value=JSON)
def test_no_value_of_any_field_is_a_crash(tmp_path: Path, field: str, value: Any) -> None:
    path = tmp_path / "fuzz.json"
    path.write_text(json.dumps([test(**{field: value})]))
    try:
        found = read_llama_bench(path)
    except EdgeAdaptError:
        return
    render(found)


def test_what_is_written_is_read_again(tiny_gguf: Path, tmp_path: Path) -> None:
    measured = bench_artifact(
        tiny_gguf, threads=1, prompt_tokens=8, decode_tokens=4, repetitions=2, depths=[20]
    )
    entries = as_llama_bench([measured])
    assert set(entries[0]) >= set(COMMON | PREFILL) - {"lazy_mode", "fit_target", "fit_min_ctx"}
    path = tmp_path / "ours.json"
    path.write_text(json.dumps(entries))
    (found,) = read_llama_bench(path)
    assert [(s.tokens, s.depth) for s in found.decode] == [(4, 8), (4, 20)]
    assert found.decode[0].tps.samples == measured.decode_tps.samples
    assert found.prefill[0].tps.samples == measured.prefill_tps.samples
    assert found.parameters == measured.runtime.parameters
    tensors = GGUFReader(tiny_gguf).tensors
    assert found.size_bytes == sum(int(tensor.n_bytes) for tensor in tensors)
    assert found.size_bytes < measured.artifact.size_bytes
    assert found.description.startswith("llama")


def test_both_join_one_report(tiny_gguf: Path, board: Path, tmp_path: Path) -> None:
    ours = tmp_path / "ours.json"
    short = ["--prompt-tokens", "8", "--decode-tokens", "4", "--repetitions", "1", "--threads", "1"]
    arguments = ["bench", str(tiny_gguf), *short, "--import", str(board)]
    done = CliRunner().invoke(cli, [*arguments, "--llama-bench-json", str(ours)])
    assert done.exit_code == 0, done.output
    assert "tiny.gguf" in done.stdout
    assert "m.Q4_0.gguf" in done.stdout
    assert "Cortex-A76" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    alone = CliRunner().invoke(cli, ["bench", "--import", str(ours), "--json"])
    (record,) = json.loads(alone.stdout)
    assert (record["source"], record["threads"]) == ("llama-bench", 1)
    nothing = CliRunner().invoke(cli, ["bench"])
    assert nothing.exit_code == 2
    assert "nothing to measure" in nothing.stderr
