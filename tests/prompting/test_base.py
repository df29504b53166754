"""Datasets that are written as a prompting asks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edgeadapt.data.load import load_examples
from edgeadapt.errors import InputError
from edgeadapt.fidelity.compare import Engine
from edgeadapt.fidelity.task import Task, measure_task
from edgeadapt.fidelity.text import held_out_text
from edgeadapt.prompting import Plain, apply
from edgeadapt.prompting.few_shot import FewShot, few_shot_of
from edgeadapt.tokenizer import ModelTokenizer


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


SHOTS = FewShot(((user("2 + 2?"), assistant("4")),))


def test_all_forms_are_asked_with_the_prompting_and_keep_their_answers(tmp_path: Path) -> None:
    data = write(
        tmp_path / "data.jsonl",
        {"prompt": "fox?", "completion": "brown"},
        {"messages": [user("a"), assistant("b"), user("c"), assistant("d")]},
        {"question": "dog?", "choices": ["lazy", "quick"], "answer": 0},
        {"messages": [{"role": "system", "content": "s"}, user("e"), assistant("f"), user("g")]},
    )
    applied = apply(SHOTS, data, tmp_path / "out.jsonl")
    written = load_examples(applied.path)
    assert written == list(applied.prompted)
    assert [example.answer() for example in written] == ["brown", "d", "lazy", "f"]
    assert all(example.score == "last" for example in written)
    shots = (user("2 + 2?"), assistant("4"))
    assert written[0].question() == (*shots, user("fox?"))
    assert written[1].question() == (*shots, user("a"), assistant("b"), user("c"))
    assert written[2].choices == ("lazy", "quick")
    assert written[3].question() == ({"role": "system", "content": "s"}, *shots, user("e"))
    assert applied.earlier_answers == 1
    # written again, nothing before the last answer is one that was scored
    again = apply(Plain(), applied.path, tmp_path / "again.jsonl")
    assert again.earlier_answers == 0 and again.prompted == applied.prompted


def test_what_else_the_template_reads_of_an_answer_is_kept(tmp_path: Path) -> None:
    answer = assistant("b") | {"reasoning": "because"}
    data = write(tmp_path / "data.jsonl", {"messages": [user("a"), answer]})
    (example,) = apply(SHOTS, data, tmp_path / "out.jsonl").prompted
    assert example.messages is not None and example.messages[-1] == answer


def test_the_same_tokens_are_scored_as_without_it(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = ModelTokenizer.from_folder(tiny_model)
    data = write(
        tmp_path / "data.jsonl",
        *({"prompt": f"What is {i}?", "completion": f"brown fox {i}"} for i in range(5)),
    )
    applied = apply(SHOTS, data, tmp_path / "out.jsonl")
    plain, prompted = (held_out_text(path, tokenizer) for path in (data, applied.path))
    for one, other in zip(plain, prompted, strict=True):
        assert len(other.ids) > len(one.ids)
        wanted = [token for token, counts in zip(one.ids, one.scored, strict=True) if counts]
        assert wanted == [t for t, counts in zip(other.ids, other.scored, strict=True) if counts]


def test_choices_are_weighed_behind_the_prompt(
    tiny_gguf: Path, tiny_model: Path, tmp_path: Path
) -> None:
    from edgeadapt.jobs import Text, score

    tokenizer = ModelTokenizer.from_folder(tiny_model)
    choices = ["brown fox", "lazy dog", "argument"]
    data = write(
        tmp_path / "data.jsonl",
        *({"prompt": "The quick", "choices": choices, "answer": index} for index in range(3)),
    )
    applied = apply(SHOTS, data, tmp_path / "out.jsonl")
    turn = tokenizer.render(applied.prompted[0].question(), add_generation_prompt=True)
    assert "2 + 2?" in turn
    nll = score(tiny_gguf, [Text(turn, f"{choice}<|im_end|>") for choice in choices], threads=1).nll
    likeliest = min(range(3), key=nll.__getitem__)
    task = Task("multiple-choice", applied.path)
    result = measure_task(tiny_gguf, task, tokenizer, engine=Engine(threads=1), label="tiny")
    assert result.values.tolist() == [float(index == likeliest) for index in range(3)]


def test_plain_text_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", {"prompt": "a", "completion": "b"}, {"text": "c"})
    with pytest.raises(InputError, match=r"1 of 2 examples of .* are plain text"):
        apply(SHOTS, data, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("template", "match"),
    [
        (None, "no chat template, so it knows no turns"),
        ("{{ raise_exception('turns must alternate') if messages|length > 2 }}", "must alternate"),
    ],
)
def test_what_the_model_does_not_read_is_not_written(
    tiny_model: Path, tmp_path: Path, template: str | None, match: str
) -> None:
    tokenizer = replace(ModelTokenizer.from_folder(tiny_model), chat_template=template)
    data = write(tmp_path / "data.jsonl", {"prompt": "a", "completion": "b"})
    with pytest.raises(InputError, match=match):
        apply(SHOTS, data, tmp_path / "out.jsonl", tokenizer)
    assert not (tmp_path / "out.jsonl").exists()


def test_a_name_that_cannot_be_read_again_or_is_taken_is_refused(tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", {"prompt": "a", "completion": "b"})
    with pytest.raises(InputError, match=r"does not end in \.jsonl"):
        apply(SHOTS, data, tmp_path / "out.json")
    with pytest.raises(InputError, match="exists already"):
        apply(SHOTS, data, data)
    assert json.loads(data.read_text()) == {"prompt": "a", "completion": "b"}


def test_the_question_of_a_shot_is_not_answered_by_it(tmp_path: Path) -> None:
    data = write(
        tmp_path / "data.jsonl", *({"prompt": f"q{i}", "completion": f"a{i}"} for i in range(3))
    )
    examples = load_examples(data)
    applied = apply(few_shot_of(examples[:2]), data, tmp_path / "out.jsonl")
    asked = [[m["content"] for m in example.question()] for example in applied.prompted]
    assert asked == [["q1", "a1", "q0"], ["q0", "a0", "q1"], ["q0", "a0", "q1", "a1", "q2"]]
