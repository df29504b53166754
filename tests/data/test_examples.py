from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeadapt.data.examples import Example, as_record, parse_example
from edgeadapt.data.load import load_examples
from edgeadapt.data.source import GENERAL, held_out_part, resolve_data
from edgeadapt.errors import InputError

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
turns = st.lists(st.tuples(texts, texts), min_size=1, max_size=3)


def conversation(pairs: list[tuple[str, str]], score: str) -> Example:
    messages = []
    for question, answer in pairs:
        messages += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    return Example(messages=tuple(messages), score=score)  # type: ignore[arg-type]


examples = st.one_of(
    st.builds(lambda text: Example(text=text), texts),
    st.builds(lambda prompt, answer: Example(prompt=prompt, completion=answer), texts, texts),
    st.builds(conversation, turns, st.sampled_from(["all", "last"])),
    st.builds(
        lambda prompt, choices, index: Example(
            prompt=prompt, choices=tuple(choices), completion=choices[index % len(choices)]
        ),
        texts, st.lists(texts, min_size=2, max_size=4, unique=True), st.integers(0, 3),
    ),
)  # fmt: skip


@given(examples, st.none() | texts)
def test_a_row_is_read_as_the_example_that_it_was_written_from(
    example: Example, group: str | None
) -> None:
    example = replace(example, group=group)
    assert parse_example(as_record(example), "here") == example


def test_a_group_is_a_text_or_a_number() -> None:
    found = [
        parse_example({"text": "a", "group": group}, "here").group
        for group in ("os", 7, 7.0, 0.5, "", None, math.nan, ["os"])
    ]
    assert found == ["os", "7", "7", "0.5", None, None, None, None]
    with pytest.raises(InputError, match="'group' holds half a surrogate pair"):
        parse_example({"text": "a", "group": "\ud800"}, "here")


def test_general_questions_come_along_and_every_one_has_an_answer() -> None:
    path, held_out = resolve_data(GENERAL)
    found = load_examples(path)
    assert held_out is None and len(found) == 48
    assert all(example.prompt and example.completion for example in found)
    assert len({example.prompt for example in found}) == 48


def test_what_is_measured_on_is_the_held_out_part_where_there_is_one() -> None:
    assert held_out_part("python-docs") == resolve_data("python-docs")[1]
    assert held_out_part(GENERAL) == resolve_data(GENERAL)[0]
