"""Documents as passages: text files split at paragraph ends, and datasets example by example."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeadapt.calibration.text import read_text
from edgeadapt.data.examples import Example
from edgeadapt.data.load import load_examples
from edgeadapt.errors import InputError

TEXT_SUFFIXES = (".txt", ".md", ".rst")
DATA_SUFFIXES = (".jsonl",)

Count = Callable[[str], int]
"""Tokens of a text, as the model that will read it counts them."""


@dataclass(frozen=True)
class Passage:
    """A piece of a document."""

    text: str
    source: str
    """Where it is from: `guide.md, part 3`, `train.jsonl, example 12`."""
    tokens: int


def read_passages(path: Path, count: Count, max_tokens: int) -> list[Passage]:
    """Every document below a path, in passages.

    Args:
        path: a .txt, .md, .rst or .jsonl file, or a folder with such files in it, at any depth.
            Of a .jsonl file (see `load_examples`) each example is a document: its text, or its
            last question and the answer.
        count: tokens of a text.
        max_tokens: most tokens of a passage.

    Raises:
        InputError: nothing is there, or no text in it.
        CorruptFileError: a file is not UTF-8, or malformed.
    """
    found = [passage for file in _files(path) for passage in _read(file, path, count, max_tokens)]
    if not found:
        raise InputError(f"{path} holds no text to retrieve from")
    return found


def passages_of(
    examples: Sequence[Example], name: str, count: Count, max_tokens: int
) -> list[Passage]:
    """Examples of a dataset as documents: texts, or last questions with their answers."""
    return [
        Passage(text, f"{name}, example {number}", count(text))
        for number, example in enumerate(examples, 1)
        for text in split_text(_document(example), count, max_tokens)
    ]


def split_text(text: str, count: Count, max_tokens: int) -> list[str]:
    """Passages of at most `max_tokens`, each of as many whole paragraphs as fit.

    A paragraph that is longer alone is split where lines end, then sentences, then words; a word
    that is longer is one passage.
    """
    return list(_join(_pieces(text, count, max_tokens), count, max_tokens))


_SEPARATORS = (
    (re.compile(r"\n\s*\n"), "\n\n"),
    (re.compile(r"\n"), "\n"),
    (re.compile(r"(?<=[.!?])\s+"), " "),
    (re.compile(r"\s+"), " "),
)
"""Where a text is split, coarsest first, and what joins two pieces again."""


def _pieces(text: str, count: Count, max_tokens: int, level: int = 0) -> Iterator[tuple[str, str]]:
    """Pieces that are short enough, each with what joins it to the one before."""
    pattern, joint = _SEPARATORS[level]
    for number, part in enumerate(filter(str.strip, pattern.split(text.replace("\r\n", "\n")))):
        part = part.strip("\n").rstrip()
        if level + 1 == len(_SEPARATORS) or count(part) <= max_tokens:
            yield part, joint
            continue
        for inner, (piece, between) in enumerate(_pieces(part, count, max_tokens, level + 1)):
            yield piece, joint if number and not inner else between


def _join(pieces: Iterator[tuple[str, str]], count: Count, max_tokens: int) -> Iterator[str]:
    """Neighbours together, as long as they fit."""
    passage = ""
    for piece, joint in pieces:
        longer = f"{passage}{joint}{piece}" if passage else piece
        if passage and count(longer) > max_tokens:
            yield passage
            longer = piece
        passage = longer
    if passage:
        yield passage


def _document(example: Example) -> str:
    if example.text is not None:
        return example.text
    return f"{example.question()[-1]['content']}\n{example.answer()}"


def _files(path: Path) -> list[Path]:
    known = (*TEXT_SUFFIXES, *DATA_SUFFIXES)
    if not path.exists():
        raise InputError(
            f"the documents {path} do not exist; expected a file that ends in {', '.join(known)}, "
            "or a folder of such files"
        )
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in known)
        if not found:
            raise InputError(f"{path} holds no document; expected files in {', '.join(known)}")
        return found
    if path.suffix.lower() not in known:
        raise InputError(
            f"{path} ends in {path.suffix or 'nothing'!r}; expected a document in "
            f"{', '.join(known)}, or a folder of them"
        )
    return [path]


def _read(file: Path, root: Path, count: Count, max_tokens: int) -> list[Passage]:
    name = file.name if file == root else file.relative_to(root).as_posix()
    if file.suffix.lower() in DATA_SUFFIXES:
        return passages_of(load_examples(file), name, count, max_tokens)
    parts = split_text(read_text(file), count, max_tokens)
    return [
        Passage(text, f"{name}, part {number}", count(text)) for number, text in enumerate(parts, 1)
    ]
