"""Tokens that a prompting adds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from edgeadapt.chat_template import Message
from edgeadapt.data.examples import Example
from edgeadapt.prompting import Plain, apply
from edgeadapt.prompting.few_shot import FewShot
from edgeadapt.prompting.lengths import prompt_lengths
from edgeadapt.tokenizer import ModelTokenizer

SHOT = ({"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"})


def dataset(path: Path) -> Path:
    rows = [
        {"prompt": "fox?", "completion": "brown"},
        {"prompt": "The lazy dog?", "completion": "jumps over the lazy dog"},
        {"prompt": "Grüße", "completion": "x"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_few_shot_prompt_is_added_once_and_alike(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = ModelTokenizer.from_folder(tiny_model)
    applied = apply(FewShot((SHOT,)), dataset(tmp_path / "d.jsonl"), tmp_path / "o.jsonl")
    shot = len(tokenizer.encode(tokenizer.render(SHOT, add_generation_prompt=False)))
    found = prompt_lengths(applied, tokenizer)
    assert found.questions == 3
    assert (found.added_mean, found.added_max, found.shared) == (shot, shot, shot)
    assert found.added_each == 0
    texts = [tokenizer.render(e.messages or (), add_generation_prompt=False)
             for e in applied.prompted]  # fmt: skip
    assert found.longest == max(len(tokenizer.encode(text)) for text in texts)


def test_nothing_is_added_by_asking_plainly(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = ModelTokenizer.from_folder(tiny_model)
    applied = apply(Plain(), dataset(tmp_path / "d.jsonl"), tmp_path / "o.jsonl")
    found = prompt_lengths(applied, tokenizer)
    assert (found.added_mean, found.added_max, found.shared) == (0, 0, 0)


@dataclass(frozen=True)
class Echo:
    """Adds the question twice more."""

    name: str = "echo"

    def messages(self, example: Example) -> tuple[Message, ...]:
        (question,) = example.question()
        return (question | {"content": question["content"] * 3},)


def test_what_differs_by_question_is_paid_by_each(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = ModelTokenizer.from_folder(tiny_model)
    applied = apply(Echo(), dataset(tmp_path / "d.jsonl"), tmp_path / "o.jsonl")
    added = []
    for example in applied.plain:
        before, after = (
            len(tokenizer.encode(tokenizer.render(m, add_generation_prompt=True)))
            for m in (example.question(), Echo().messages(example))
        )
        added.append(after - before)
    found = prompt_lengths(applied, tokenizer)
    assert found.added_mean == sum(added) / 3 and found.added_max == max(added)
    assert found.shared == 0 and found.added_each == found.added_mean
