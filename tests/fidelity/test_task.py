"""Task metrics by hand, and the choice that the model thinks likeliest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgeadapt.errors import InputError
from edgeadapt.fidelity import task as task_module
from edgeadapt.fidelity.compare import Engine
from edgeadapt.fidelity.task import Task, check_task, exact_match, f1, measure_task, rouge_l
from edgeadapt.jobs import Text, score
from edgeadapt.plugins import Registry
from edgeadapt.tokenizer import ModelTokenizer


@pytest.mark.parametrize(
    ("metric", "answer", "expected", "value"),
    [
        (exact_match, "The answer: 42!", "answer 42", 1.0),
        (exact_match, "42", "43", 0.0),
        (f1, "a cat sat on the mat", "the cat is on a mat", 0.75),
        (f1, "", "", 1.0),
        (f1, "", "word", 0.0),
        # Lin 2004: "police killed the gunman" against two permutations
        (rouge_l, "police kill the gunman", "police killed the gunman", 0.75),
        (rouge_l, "the gunman kill police", "police killed the gunman", 0.5),
        (rouge_l, "x", "", 0.0),
    ],
)
def test_metrics(metric: object, answer: str, expected: str, value: float) -> None:
    assert callable(metric)
    assert metric(answer, expected) == pytest.approx(value)


def test_the_likeliest_choice_is_taken(tiny_gguf: Path, tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = ModelTokenizer.from_folder(tiny_model)
    choices = ["brown fox", "lazy dog", "argument"]
    prompt = "The quick"
    turn = tokenizer.render([{"role": "user", "content": prompt}], add_generation_prompt=True)
    nll = score(tiny_gguf, [Text(turn, f"{choice}<|im_end|>") for choice in choices], threads=1).nll
    likeliest = min(range(3), key=nll.__getitem__)
    rows = [{"prompt": prompt, "choices": choices, "answer": index} for index in range(3)]
    data = tmp_path / "choices.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = Task("multiple-choice", data)
    result = measure_task(tiny_gguf, task, tokenizer, engine=Engine(threads=1), label="tiny")
    assert result.score.value == pytest.approx(1 / 3) and result.examples == 3
    (tmp_path / "one.jsonl").write_text(json.dumps(rows[likeliest]) + "\n")
    one = Task("multiple-choice", tmp_path / "one.jsonl")
    found = measure_task(tiny_gguf, one, tokenizer, engine=Engine(threads=1), label="tiny")
    assert found.score.value == 1


def test_a_callable_of_another_package_is_used(
    tiny_gguf: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, str]] = []

    def length(answer: str, expected: str) -> float:
        seen.append((answer, expected))
        return float(len(expected))

    class Plugins(Registry):
        def load(self, name: str) -> object:
            return length if name == "length" else super().load(name)

    monkeypatch.setattr(
        task_module, "_METRICS", Plugins("task metric", "edgeadapt.metrics", {"f1": "x:y"})
    )
    data = tmp_path / "rows.jsonl"
    chat = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "bye"},
    ]
    data.write_text(
        '{"prompt": "a", "completion": "bcd"}\n' + json.dumps({"messages": chat}) + "\n"
    )
    task = Task("length", data, max_tokens=3)
    tokenizer = ModelTokenizer.from_folder(tiny_model)
    result = measure_task(tiny_gguf, task, tokenizer, engine=Engine(threads=1), label="tiny")
    assert result.score.value == 4
    assert [expected for _, expected in seen] == ["bcd", "hello"]


def test_questions_are_asked_under_the_system_prompt_of_training(
    tiny_gguf: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[dict[str, str]]] = []
    real = task_module.sample

    def spy(path: Path, conversations: Any, **options: Any) -> Any:
        asked.extend([dict(message) for message in one] for one in conversations)
        return real(path, conversations, **options)

    monkeypatch.setattr(task_module, "sample", spy)
    own = [{"role": "system", "content": "own"}, {"role": "user", "content": "hi"}]
    answer = {"role": "assistant", "content": "hello"}
    rows = [{"prompt": "a", "completion": "b"}, {"messages": [*own, answer]}]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = ModelTokenizer.from_folder(tiny_model)
    task = Task("f1", data, max_tokens=3, system="Be brief.")
    measure_task(tiny_gguf, task, tokenizer, engine=Engine(threads=1), label="tiny")
    brief = {"role": "system", "content": "Be brief."}
    assert asked == [[brief, {"role": "user", "content": "a"}], own]


def test_tasks_that_cannot_be_measured_are_refused(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n')
    with pytest.raises(InputError, match=r"no task metric 'bleu'.*rouge-l"):
        check_task(Task("bleu", data))
    with pytest.raises(InputError, match="no example with choices"):
        check_task(Task("multiple-choice", data))
    data.write_text('{"text": "a"}\n')
    with pytest.raises(InputError, match="no example with a question"):
        check_task(Task("f1", data))
