"""`edgeadapt prompt`: from training data and documents to held-out data that `evaluate` reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from edgeadapt.cli import cli
from edgeadapt.cli.prompt_ import retrieve
from edgeadapt.data.load import load_examples
from edgeadapt.prompting.retrievers import RETRIEVERS

pytest.importorskip("llama_cpp")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def document(*arguments: object) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


@pytest.fixture
def data(tmp_path: Path) -> tuple[Path, Path]:
    """Training and held-out data."""
    files = []
    for name, first, count in (("train", 0, 16), ("held-out", 100, 4)):
        rows = [
            {"prompt": f"fox {i}?", "completion": f"dog {i}"} for i in range(first, first + count)
        ]
        files.append(tmp_path / f"{name}.jsonl")
        files[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return files[0], files[1]


def test_a_few_shot_prompt_from_training_to_evaluation(
    tiny_model: Path, tiny_gguf: Path, data: tuple[Path, Path], tmp_path: Path
) -> None:
    train, held_out = data
    shots, out = tmp_path / "shots.json", tmp_path / "out.jsonl"
    small = ("--shots", 2, "--candidates", 3, "--validation", 4, "--max-tokens", 90)
    found = document(
        "prompt", "few-shot", "--base", tiny_model, "--model", tiny_gguf, "--data", train,
        "--out", shots, "--threads", 1, *small,
    )  # fmt: skip
    assert json.loads(shots.read_text()) == found["messages"] and len(found["messages"]) == 4
    assert len(found["tried"]) == 3 and found["plain"]["validation"] == 4
    asked = ("prompt", "apply", shots, "--base", tiny_model, "--data", held_out, "--out", out)
    priced = document(*asked, "--model", tiny_gguf, "--device", "raspberry-pi-5")
    assert priced["tokens"]["shared"] == priced["tokens"]["added_max"] > 0
    (price,) = priced["price"]
    assert price["kv_bytes"]["max"] == 2 * 2 * 2 * 2 * 16 * priced["tokens"]["added_max"]
    assert price["once_s"] == price["prefill_s"]
    for plain, prompted in zip(load_examples(held_out), load_examples(out), strict=True):
        assert list(prompted.question()) == [*found["messages"], *plain.question()]
    measured = run(
        "evaluate", tiny_gguf, "--base", tiny_model, "--data", out, "--no-quantized-base",
        "--threads", 1, "--json",
    )  # fmt: skip
    assert measured.exit_code == 0, measured.output
    assert json.loads(measured.stdout)["reference"]["sequences"] == 4


def test_the_base_itself_is_asked_where_no_artifact_is_given(
    tiny_model: Path, data: tuple[Path, Path], tmp_path: Path
) -> None:
    result = run(
        "prompt", "few-shot", "--base", tiny_model, "--data", data[0], "--out",
        tmp_path / "shots.json", "--shots", 1, "--candidates", 2, "--validation", 4, "-q",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("EXAMPLES") and lines[1].startswith("none")
    assert sum("chosen" in line for line in lines[1:4]) == 1
    assert "1 examples, chosen on 4 others" in result.stdout


def test_passages_of_documents(
    tiny_model: Path, tiny_gguf: Path, data: tuple[Path, Path], tmp_path: Path
) -> None:
    pytest.importorskip("bm25s")
    train, held_out = data
    (tmp_path / "guide.md").write_text("A fox 101 is red.\n\nThe answer is dog 102, of course.")
    out = tmp_path / "rag.jsonl"
    asked = ("prompt", "retrieve", "--base", tiny_model, "--data", held_out)
    found = document(
        *asked, "--documents", tmp_path / "guide.md", "--out", out, "--passage-tokens", 40,
        "--template", r"{question}\n({passages})",
    )  # fmt: skip
    assert found["prompting"] == "rag-bm25" and found["retrieval"]["passages"] == 2
    second = load_examples(out)[1]
    assert second.question()[0]["content"] == "fox 101?\n(A fox 101 is red.)"
    of_training = run(*asked, "--documents", train, "--out", tmp_path / "train.jsonl.jsonl")
    assert of_training.exit_code == 0 and "of 16 passages a question" in of_training.output
    assert f"--data {tmp_path / 'train.jsonl.jsonl'}" in of_training.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("retrieve",), "give --documents"),
        (("retrieve", "--documents", "nothing"), "the documents nothing do not exist"),
        (("apply", "shots.json", "--device", "raspberry-pi-5"), "--device needs --model"),
        (("apply", "shots.json"), "cannot read shots.json"),
        (("apply", "shots.json", "--device", "toaster"), "no device profile 'toaster'"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    tiny_model: Path, data: tuple[Path, Path], tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    out = tmp_path / "out.jsonl"
    result = run("prompt", *arguments, "--base", tiny_model, "--data", data[1], "--out", out)
    assert result.exit_code == 2
    assert said in result.stderr and len(result.stderr.strip().splitlines()) == 1
    assert not out.exists()


def test_every_retriever_can_be_asked_for() -> None:
    (option,) = (o for o in retrieve.params if o.name == "retriever")
    assert isinstance(option.type, click.Choice) and list(option.type.choices) == list(RETRIEVERS)


@pytest.mark.parametrize("name", ["few-shot", "apply", "retrieve"])
def test_help_fits_a_terminal(name: str) -> None:
    result = CliRunner().invoke(cli, ["prompt", name, "--help"], terminal_width=80)
    assert result.exit_code == 0
    assert all(len(line) <= 80 for line in result.output.splitlines())
