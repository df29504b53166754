"""Documents in passages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeadapt.errors import CorruptFileError, InputError
from edgeadapt.prompting.passages import read_passages, split_text


def words(text: str) -> int:
    return len(text.split())


TEXT = "One two three.\n\nFour five.\nSix seven eight nine. Ten eleven.\n\nTwelve."


def test_passages_end_where_paragraphs_do() -> None:
    assert split_text(TEXT, words, 11) == [
        "One two three.\n\nFour five.\nSix seven eight nine. Ten eleven.", "Twelve.",
    ]  # fmt: skip


def test_a_long_paragraph_is_split_at_lines_then_sentences_then_words() -> None:
    assert split_text(TEXT, words, 4) == [
        "One two three.", "Four five.", "Six seven eight nine.", "Ten eleven.\n\nTwelve.",
    ]  # fmt: skip
    assert split_text("a b c d e. f", words, 2) == ["a b", "c d", "e. f"]


@given(
    st.text(alphabet="ab .!\n\t\r", max_size=80) | st.text(max_size=80),
    st.integers(1, 9),
)
def test_no_word_is_lost_and_no_passage_too_long(text: str, most: int) -> None:
    passages = split_text(text, words, most)
    assert " ".join(passages).split() == text.split()
    assert all(0 < words(passage) <= most for passage in passages)


def test_a_folder_is_read_at_any_depth(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/guide.md").write_text("# Title\n\nBody.")
    (tmp_path / "b.txt").write_text("")
    (tmp_path / "c.bin").write_bytes(b"\xff")
    rows = [{"prompt": "Why?", "completion": "So."}, {"text": "Plain."}]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = [(p.text, p.source, p.tokens) for p in read_passages(tmp_path, words, 50)]
    assert found == [
        ("Why?\nSo.", "d.jsonl, example 1", 2),
        ("Plain.", "d.jsonl, example 2", 1),
        ("# Title\n\nBody.", "deep/guide.md, part 1", 3),
    ]


def test_what_is_no_document_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="do not exist"):
        read_passages(tmp_path / "none", words, 9)
    with pytest.raises(InputError, match="holds no document"):
        read_passages(tmp_path, words, 9)
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    with pytest.raises(InputError, match=r"ends in '\.pdf'; expected a document in \.txt"):
        read_passages(tmp_path / "a.pdf", words, 9)
    (tmp_path / "a.txt").write_text(" \n")
    with pytest.raises(InputError, match="no text to retrieve"):
        read_passages(tmp_path / "a.txt", words, 9)
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(CorruptFileError, match="not UTF-8"):
        read_passages(tmp_path / "b.txt", words, 9)
