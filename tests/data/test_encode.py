from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeadapt.data.encode import Encoded, encode_dataset, encode_example, with_system
from edgeadapt.data.examples import Example
from edgeadapt.errors import InputError
from edgeadapt.tokenizer import ModelTokenizer
from tests.tiny import save_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ModelTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return ModelTokenizer.from_folder(folder)


def chat(*contents: str) -> Example:
    roles = ("user", "assistant")
    return Example(
        messages=tuple({"role": roles[i % 2], "content": c} for i, c in enumerate(contents))
    )


def scored_text(encoded: Encoded, tokenizer: ModelTokenizer) -> str:
    return tokenizer.decode([i for i, s in zip(encoded.ids, encoded.scored, strict=True) if s])


def test_an_answer_and_its_end_token_count_and_nothing_else(tokenizer):
    encoded = encode_example(chat("What is 2?", "A number."), tokenizer, 256)
    assert scored_text(encoded, tokenizer) == "A number.<|im_end|>"
    assert tokenizer.decode(encoded.ids) == (
        "<|im_start|>user\nWhat is 2?<|im_end|>\n<|im_start|>assistant\nA number.<|im_end|>\n"
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=30).filter(lambda t: "<|" not in t), min_size=2, max_size=6))
def test_every_assistant_turn_counts(tokenizer, contents):
    encoded = encode_example(chat(*contents), tokenizer, 4096)
    answers = contents[1::2]
    assert scored_text(encoded, tokenizer) == "".join(f"{a}<|im_end|>" for a in answers)
    # What an engine is prompted with is a prefix of what was trained on.
    prompt = tokenizer.encode(
        tokenizer.render(chat(*contents).messages[:1], add_generation_prompt=True)
    )
    assert encoded.ids[: len(prompt)] == prompt


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(max_size=30).filter(lambda t: "<|" not in t), min_size=2, max_size=6))
def test_only_the_last_turn_counts_where_the_example_says_so(tokenizer, contents):
    example = dataclasses.replace(chat(*contents), score="last")
    encoded = encode_example(example, tokenizer, 4096)
    assert scored_text(encoded, tokenizer) == f"{example.answer()}<|im_end|>"
    prompt = tokenizer.render(example.question(), add_generation_prompt=True)
    assert encoded.ids[: len(tokenizer.encode(prompt))] == tokenizer.encode(prompt)


def test_the_last_turn_alone_counts_under_a_template_that_rewrites_earlier_ones(tokenizer):
    trims = dataclasses.replace(
        tokenizer,
        chat_template=(
            "{% for m in messages %}{{ m['role'] + ':' }}"
            "{{ m['content'] if loop.index > loop.length - 2 else '...' }}<|im_end|>{% endfor %}"
            "{% if add_generation_prompt %}assistant:{% endif %}"
        ),
    )
    example = dataclasses.replace(chat("a", "first", "b", "second"), score="last")
    with pytest.raises(InputError, match="renders a question differently"):
        encode_example(example, trims, 256)


def test_messages_after_the_last_answer_are_left_out(tokenizer):
    with_more = encode_example(chat("a", "b", "c"), tokenizer, 256)
    assert with_more == encode_example(chat("a", "b"), tokenizer, 256)


def test_prompt_and_completion_are_a_turn_where_the_model_has_a_template(tokenizer):
    pair = Example(prompt="a", completion="b")
    assert encode_example(pair, tokenizer, 256) == encode_example(chat("a", "b"), tokenizer, 256)


def test_prompt_and_completion_are_joined_where_it_has_none(tokenizer):
    plain = dataclasses.replace(tokenizer, chat_template=None)
    encoded = encode_example(Example(prompt="The quick", completion=" brown fox"), plain, 256)
    assert scored_text(encoded, plain) == " brown fox<|im_end|>"
    assert plain.decode(encoded.ids) == "The quick brown fox<|im_end|>"


def test_a_token_across_the_boundary_is_split(tokenizer):
    plain = dataclasses.replace(tokenizer, chat_template=None)
    joined, prompt = plain.encode("quick"), plain.encode("qui")
    assert joined[: len(prompt)] != prompt, "this test needs a merge across the boundary"
    encoded = encode_example(Example(prompt="qui", completion="ck"), plain, 256)
    assert encoded.ids[: len(prompt)] == prompt
    assert scored_text(encoded, plain) == "ck<|im_end|>"


def test_text_counts_from_its_second_token_on(tokenizer):
    encoded = encode_example(Example(text="The quick brown fox"), tokenizer, 256)
    assert encoded.scored == [False] + [True] * (len(encoded.ids) - 1)
    assert encoded.ids[-1] == tokenizer.backend.token_to_id("<|im_end|>")


def test_empty_text_gives_nothing_to_score(tokenizer):
    assert encode_example(Example(text=""), tokenizer, 256).n_scored == 0


def test_long_examples_are_cut_at_the_end(tokenizer):
    whole = encode_example(chat("What is 2?", "A number."), tokenizer, 256)
    cut = encode_example(chat("What is 2?", "A number."), tokenizer, 12)
    assert (cut.ids, cut.scored) == (whole.ids[:12], whole.scored[:12])


def test_a_template_that_rewrites_earlier_turns_trains_the_last_one_only(tokenizer):
    forgetful = dataclasses.replace(
        tokenizer,
        chat_template=(
            "{% for m in messages %}{{ m['role'] + ':' }}"
            "{% if loop.last or m['role'] == 'user' %}{{ m['content'] }}{% endif %}"
            "<|im_end|>{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
        ),
    )
    encoded = encode_example(chat("a", "first", "b", "second"), forgetful, 256)
    assert scored_text(encoded, forgetful) == "second<|im_end|>"


def test_a_template_that_rewrites_the_question_is_refused(tokenizer):
    odd = dataclasses.replace(
        tokenizer, chat_template="{{ messages|length }}{{ messages[-1]['content'] }}"
    )
    with pytest.raises(InputError, match="renders a question differently"):
        encode_example(chat("a", "b"), odd, 256)


def test_ids_are_reproducible_from_the_folder(tokenizer, tmp_path: Path):
    save_tokenizer(tmp_path)
    again = ModelTokenizer.from_folder(tmp_path)
    example = chat("naïve café?", "日本語 🙂")
    assert encode_example(example, again, 256) == encode_example(example, tokenizer, 256)


def test_each_turn_is_marked_under_a_system_prompt(tokenizer, tmp_path: Path):
    rows = [
        {"messages": list(chat("Hi?", "Yes.", "So?", "No.").messages)},
        {"messages": [{"role": "system", "content": "Own."}, *chat("Hi?", "Yes.").messages]},
        {"prompt": "Hi?", "completion": "Yes."},
        {"text": "plain"},
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    turns, own, pair, text = encode_dataset(data, tokenizer, 256, system="Be brief.")
    head = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi?<|im_end|>\n"
    assert tokenizer.decode(turns.ids).startswith(head)
    assert scored_text(turns, tokenizer) == "Yes.<|im_end|>No.<|im_end|>"
    assert tokenizer.decode(own.ids).startswith("<|im_start|>system\nOwn.<|im_end|>")
    assert "Be brief" not in tokenizer.decode(own.ids)
    assert tokenizer.decode(pair.ids).startswith(head)
    assert scored_text(pair, tokenizer) == "Yes.<|im_end|>"
    assert text == encode_dataset(data, tokenizer, 256)[3]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "needs a chat template"),
        ("{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}", "no system"),
        (
            "{% if messages[0].role == 'system' %}{{ raise_exception('unsupported') }}{% endif %}",
            "no system role.*unsupported",
        ),
    ],
)
def test_a_template_without_a_system_role_is_refused(tokenizer, template, said):
    other = dataclasses.replace(tokenizer, chat_template=template)
    with pytest.raises(InputError, match=said):
        with_system(chat("Hi?", "Yes."), "Be brief.", other)
