"""Warm prompts through the command line, on a tiny model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from edgeadapt.bench.measurement import Measurement
from edgeadapt.cli import cli
from edgeadapt.files import sha256_file
from tests.tiny import CHAT_TEMPLATE, save_llama

pytest.importorskip("llama_cpp")

PROMPT = "Be brief. The quick brown fox jumps over the lazy dog."


def run(*arguments: object, given: str | None = None) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], input=given)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An export with a warm prompt, and what was printed."""
    folder = tmp_path_factory.mktemp("made")
    base = save_llama(folder / "base")
    prompt = folder / "system.txt"
    prompt.write_text(f"{PROMPT}\n")
    common = ("export", "--base", base, "--warm-prompt", prompt)
    gguf = run(*common, "--format", "gguf", "--quant", "Q8_0", "--out", folder / "m.gguf", "--json")
    assert gguf.exit_code == 0, gguf.stderr
    return {
        "folder": folder,
        "base": base,
        "prompt": prompt,
        "common": common,
        "gguf": folder / "m.gguf",
        "warm": folder / "m.warm.json",
        "printed": json.loads(gguf.stdout),
    }


def test_export_tells_of_it(made: dict[str, Any]) -> None:
    told = made["printed"]["warm_prompt"]
    assert Path(told["path"]) == made["warm"]
    record = json.loads(made["warm"].read_text())
    assert told["tokens"] == len(record["ids"]) > 30
    assert told["state_bytes"] == (made["folder"] / "m.warm.state").stat().st_size
    assert told["predicted"] is None
    assert record["messages"] == [{"role": "system", "content": PROMPT}]
    assert record["artifact"]["base"] == made["printed"]["lineage"]["base"]["sha256"]


@pytest.mark.parametrize("verify", [(), ("--verify", "here")])
def test_for_a_device_it_says_what_it_should_save(
    made: dict[str, Any], verify: tuple[str, ...], tmp_path: Path
) -> None:
    out, warm = tmp_path / "pi.gguf", tmp_path / "pi.warm.json"
    device = ("--device", "raspberry-pi-5", "--context", "200", *verify)
    done = run(*made["common"], *device, "--out", out)
    assert done.exit_code == 0, done.stderr
    assert "with its state (80% intervals)" in done.stdout
    assert done.stdout.splitlines()[-1].endswith(f"--warm {warm}")
    assert json.loads(warm.read_text())["artifact"]["sha256"] == sha256_file(out)
    assert (tmp_path / "pi.warm.state").is_file()


def test_an_onnx_folder_gets_its_own(made: dict[str, Any]) -> None:
    pytest.importorskip("onnxruntime")
    out = made["folder"] / "m-onnx"
    done = run(*made["common"], "--format", "onnx", "--quant", "fp32", "--out", out)
    assert done.exit_code == 0, done.stderr
    warm = made["folder"] / "m-onnx.warm.json"
    talked = run("chat", out, "--warm", warm, "--prompt", "Hi", "--json", "--max-tokens", "5")
    assert talked.exit_code == 0, talked.stderr
    refused = run("chat", out, "--warm", warm, "--prompt", "Hi", "--runtime", "ort-genai")
    assert refused.exit_code == 2
    assert "llama-cpp and onnxruntime can" in refused.stderr


def test_chat_starts_after_it_and_reset_goes_back(made: dict[str, Any]) -> None:
    lines = "one\ntwo\n/reset\none\n"
    common = ("chat", made["gguf"], "--json", "--max-tokens", "8", "--threads", "1")
    done = run(*common, "--warm", made["warm"], given=lines)
    assert done.exit_code == 0, done.stderr
    turns = json.loads(done.stdout)["turns"]
    assert turns[0]["assistant"] == turns[2]["assistant"]
    without = json.loads(run(*common, given=lines).stdout)["turns"]
    assert without[0]["assistant"] != turns[0]["assistant"]
    both = run(*common, "--warm", made["warm"], "--system", "Be verbose.", given=lines)
    assert both.exit_code == 2 and "leave --system out" in both.stderr


def test_bench_takes_both_times(made: dict[str, Any]) -> None:
    short = (
        "--prompt-tokens", 8, "--decode-tokens", 2, "--repetitions", 3, "--threads", 1,
    )  # fmt: skip
    done = run("bench", made["gguf"], "--warm", made["warm"], *short, "--json", "-q")
    assert done.exit_code == 0, done.stderr
    found = Measurement.model_validate(json.loads(done.stdout)[0])
    assert found.settings.warm == "m.warm.json"
    assert found.warm is not None
    assert found.warm.tokens == made["printed"]["warm_prompt"]["tokens"]
    assert found.warm.question_tokens == 8
    assert found.warm.state == "shipped"
    assert found.warm.ttft_s.count == found.warm.ttft_without_s.count == 3
    assert found.warm.ttft_s.median > 0 and found.warm.ready_s > 0
    table = run("bench", made["gguf"], "--warm", made["warm"], *short)
    assert "without its state" in table.stdout.replace("\n", " ")
    plain = json.loads(run("bench", made["gguf"], *short, "--json", "-q").stdout)[0]
    assert plain["warm"] is None
    tight = run("bench", made["gguf"], "--warm", made["warm"], *short, "--context", 32)
    assert tight.exit_code == 2 and "need a context of" in tight.stderr
    away = run("bench", made["gguf"], "--warm", made["warm"], "--on", "ssh://nobody@nowhere")
    assert away.exit_code == 2 and "--warm names a file here" in away.stderr


def test_plan_says_what_it_saves(made: dict[str, Any]) -> None:
    common = ("plan", "--base", made["base"], "--warm-prompt", made["prompt"])
    done = run(*common, "--device", "jetson-orin-nano", "--json")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    rows = document["warm_prompt"]
    assert len(rows) == len(document["candidates"])
    tokens = made["printed"]["warm_prompt"]["tokens"]
    for row in rows:
        assert row["tokens"] == tokens
        if row["runtime"] == "ort-genai":
            assert row["ttft_s"] is None
        else:
            assert row["ttft_s"]["low"] <= row["ttft_without_s"]["low"]
            assert row["ttft_s"]["high"] < row["ttft_without_s"]["high"]
    assert {row["runtime"] for row in rows} == {"llama-cpp", "ort-genai"}
    shown = run(*common, "--device", "jetson-orin-nano")
    *lines, last = shown.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert f"this prompt of {tokens} tokens" in shown.stdout.replace("\n", " ")
    assert "--warm-prompt" in last


def test_what_is_refused_leaves_nothing(made: dict[str, Any], tmp_path: Path) -> None:
    dated = shutil.copytree(made["base"], tmp_path / "dated")
    config = json.loads((dated / "tokenizer_config.json").read_text())
    config["chat_template"] = "{{ strftime_now('%d') }}" + CHAT_TEMPLATE
    (dated / "tokenizer_config.json").write_text(json.dumps(config))
    target = ("--format", "gguf", "--quant", "Q8_0", "--out", tmp_path / "x.gguf")
    prompt = ("--warm-prompt", made["prompt"])
    taken = tmp_path / "taken.gguf"
    taken.with_name("taken.warm.state").write_text("")
    cases = {
        "writes the date": ("--base", dated, *prompt, *target),
        "cannot read": ("--base", made["base"], "--warm-prompt", tmp_path / "none.txt", *target),
        "not with --dry-run": ("--base", made["base"], *prompt, *target, "--dry-run"),
        "exists already": ("--base", made["base"], *prompt, *target[:-1], taken),
    }  # fmt: skip
    before = sorted(tmp_path.iterdir())
    for why, arguments in cases.items():
        done = run("export", *arguments)
        assert done.exit_code == 2, done.stdout
        assert why in done.stderr and done.stderr.splitlines()[-1].startswith("Error: ")
    assert sorted(tmp_path.iterdir()) == before


def test_warm_for_an_artifact_that_is_there(made: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "mine.warm.json"
    done = run("warm", made["gguf"], "--prompt", made["prompt"], "--out", out)
    assert done.exit_code == 0, done.stderr
    assert out.read_bytes() == made["warm"].read_bytes()
    assert (tmp_path / "mine.warm.state").is_file()
    assert f"--warm {out}" in done.stdout
    again = run("warm", made["gguf"], "--prompt", made["prompt"], "--out", out)
    assert again.exit_code == 2 and "exists already" in again.stderr
