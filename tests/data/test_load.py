from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgeadapt.data.examples import Example
from edgeadapt.data.load import data_hash, load_examples
from edgeadapt.errors import CorruptFileError, EdgeAdaptError, InputError

MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
RECORDS = [
    ({"messages": MESSAGES}, Example(messages=tuple(MESSAGES))),
    ({"prompt": "a", "completion": "b"}, Example(prompt="a", completion="b")),
    ({"messages": MESSAGES, "score": "last", "choices": ["Bye", "Hello"]},
     Example(messages=tuple(MESSAGES), choices=("Bye", "Hello"), score="last")),
    ({"messages": MESSAGES, "score": "4.5", "choices": "a column of another meaning"},
     Example(messages=tuple(MESSAGES))),
    ({"text": "plain, with a comma\nand a second line"},
     Example(text="plain, with a comma\nand a second line")),
]  # fmt: skip


def jsonl(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def csv_file(path: Path, record: dict) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(record)
        writer.writerow([v if isinstance(v, str) else json.dumps(v) for v in record.values()])
    return path


@pytest.mark.parametrize(("record", "expected"), RECORDS)
def test_jsonl(tmp_path, record, expected):
    assert load_examples(jsonl(tmp_path / "d.jsonl", record, record)) == [expected, expected]


@pytest.mark.parametrize(("record", "expected"), RECORDS)
def test_csv(tmp_path, record, expected):
    assert load_examples(csv_file(tmp_path / "d.csv", record)) == [expected]


@pytest.mark.parametrize(("record", "expected"), RECORDS)
def test_parquet_and_datasets_folder(tmp_path, record, expected):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list([record, record])
    data.to_parquet(tmp_path / "d.parquet")
    data.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": data}).save_to_disk(tmp_path / "splits")
    for name in ("d.parquet", "saved", "splits"):
        assert load_examples(tmp_path / name) == [expected, expected]


def test_a_folder_of_files_is_read_by_name(tmp_path):
    jsonl(tmp_path / "b.jsonl", {"text": "2"})
    (tmp_path / "a.csv").write_text("text\n1\n")
    (tmp_path / "README.md").write_text("not data")
    assert [e.text for e in load_examples(tmp_path)] == ["1", "2"]


def test_share_gpt_conversations(tmp_path):
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    path = jsonl(tmp_path / "d.jsonl", {"conversations": turns})
    assert load_examples(path) == [Example(messages=tuple(MESSAGES))]


def test_prompt_and_completion_as_messages(tmp_path):
    path = jsonl(tmp_path / "d.jsonl", {"prompt": MESSAGES[:1], "completion": MESSAGES[1:]})
    assert load_examples(path) == [Example(messages=tuple(MESSAGES))]


CHOICES = {"prompt": "Which?", "choices": ["one", "two"]}


@pytest.mark.parametrize(
    "record",
    [
        CHOICES | {"answer": 1},
        CHOICES | {"answer": "B"},
        CHOICES | {"answer": "two"},
        {"question": "Which?", "choices": {"text": ["one", "two"], "label": ["1", "2"]},
         "answerKey": "2"},
    ],
)  # fmt: skip
def test_multiple_choice(tmp_path, record):
    expected = Example(prompt="Which?", completion="two", choices=("one", "two"))
    assert load_examples(jsonl(tmp_path / "d.jsonl", record)) == [expected]
    assert load_examples(csv_file(tmp_path / "d.csv", record)) == [expected]


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (CHOICES | {"answer": 2}, "field 'answer' is '2', expected the right choice's number"),
        (CHOICES, "field 'answer' is 'None', expected the right choice's number from 0 to 1"),
        (CHOICES | {"choices": ["one"]}, "field 'choices' is a list, expected a list of texts"),
        (CHOICES | {"choices": ["one", 2]}, "field 'choices[1]' is a number, expected text"),
        ({"choices": ["a", "b"], "answer": 0}, "field 'prompt' is missing"),
        (
            {"messages": MESSAGES, "score": "last", "choices": ["a", "b"]},
            "the last answer is none of the texts in field 'choices'",
        ),
        ({"messages": MESSAGES, "score": "last", "choices": 3}, "field 'choices' is a number"),
        ({"prompt": "a"}, "field 'completion' is missing"),
        ({"text": 3}, "field 'text' is a number, expected text"),
        ({"body": "x"}, "found 'body'; expected 'messages'"),
        ([1], "found a list, expected an object"),
        ({"messages": []}, "field 'messages' is an empty list"),
        ({"messages": MESSAGES[:1]}, "field 'messages' has no assistant message"),
        ({"messages": [MESSAGES[0], {"role": "assistant"}]},
         "field 'messages[1].content' is missing"),
        ({"messages": [MESSAGES[0], "x"]}, "field 'messages[1]' is text"),
        ({"text": "\ud800"}, "field 'text' holds half a surrogate pair"),
    ],
)  # fmt: skip
def test_a_bad_row_names_file_line_and_field(tmp_path, second, said):
    path = jsonl(tmp_path / "d.jsonl", {"text": "fine"}, second)
    with pytest.raises(InputError) as error:
        load_examples(path)
    assert str(error.value).startswith(f"{path}, line 2: {said}")


def test_broken_json_names_its_line(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'{"text": "a"}\n\n{"text": \n')
    with pytest.raises(CorruptFileError, match=r"d\.jsonl, line 3: not valid JSON"):
        load_examples(path)
    path.write_bytes(b'{"text": "a"}\n\xff\xfe\n')
    with pytest.raises(CorruptFileError, match=r"d\.jsonl, line 2: not UTF-8"):
        load_examples(path)


def test_a_csv_error_names_the_line_where_the_row_starts(tmp_path):
    path = tmp_path / "d.csv"
    path.write_text('text\n"two\nlines"\na,b\n')
    with pytest.raises(CorruptFileError, match=r"d\.csv, line 4: 2 fields, but the header has 1"):
        load_examples(path)
    path.write_text("prompt\nx\n")
    with pytest.raises(InputError, match=r"d\.csv, line 2: field 'completion' is missing"):
        load_examples(path)


@pytest.mark.parametrize("keep", [0, 3, 20, 100])
def test_a_cut_parquet_file(tmp_path, keep):
    datasets = pytest.importorskip("datasets")
    path = tmp_path / "d.parquet"
    datasets.Dataset.from_list([{"text": "a" * 50}] * 50).to_parquet(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CorruptFileError, match=r"d\.parquet"):
        load_examples(path)


def test_a_parquet_row_is_named(tmp_path):
    datasets = pytest.importorskip("datasets")
    path = tmp_path / "d.parquet"
    datasets.Dataset.from_list([{"text": "a"}, {"text": None}]).to_parquet(path)
    with pytest.raises(InputError, match=r"d\.parquet, row 2"):
        load_examples(path)


@pytest.mark.parametrize("name", ["missing.jsonl", "data.xlsx", "empty.jsonl", "folder"])
def test_nothing_to_read(tmp_path, name):
    (tmp_path / "data.xlsx").write_bytes(b"PK")
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=name):
        load_examples(tmp_path / name)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "messages",
                    "role",
                    "content",
                    "prompt",
                    "completion",
                    "text",
                    "from",
                    "value",
                    "x",
                ]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.lists(JSON.map(lambda v: json.dumps(v).encode()) | st.binary(max_size=40), max_size=4))
@example([b'{"text": ' + b"[" * 100_000])
@example([b'{"text": ' + b"9" * 5_000 + b"}"])
def test_any_jsonl_loads_or_is_refused(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("fuzz") / "d.jsonl"
    path.write_bytes(b"\n".join(lines))
    try:
        loaded = load_examples(path)
    except EdgeAdaptError as error:
        assert "d.jsonl" in str(error)
        return
    assert loaded
    for entry in loaded:
        forms = (entry.messages, entry.prompt, entry.text)
        assert sum(form is not None for form in forms) == 1


def test_the_hash_follows_the_content_only(tmp_path):
    first, second = jsonl(tmp_path / "a.jsonl", {"text": "1"}), tmp_path / "b.jsonl"
    second.write_bytes(first.read_bytes())
    assert data_hash(first) == data_hash(second)
    jsonl(second, {"text": "2"})
    assert data_hash(first) != data_hash(second)
