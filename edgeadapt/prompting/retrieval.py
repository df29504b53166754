"""Retrieval-augmented generation: passages of the user's documents beside the question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgeadapt.chat_template import Message
from edgeadapt.data.examples import Example
from edgeadapt.data.load import load_examples
from edgeadapt.errors import InputError
from edgeadapt.prompting.passages import Passage, passages_of, read_passages
from edgeadapt.prompting.retrievers import RETRIEVERS, Retriever
from edgeadapt.tokenizer import ModelTokenizer

TEMPLATE = "{passages}\n\n{question}"
"""How passages and question become the user's turn."""


@dataclass(frozen=True)
class RetrievalSettings:
    """How passages are made, found and put into the prompt."""

    retriever: str = "bm25"
    top_k: int = 3
    """Most passages in a prompt."""
    max_tokens: int = 384
    """Most tokens of them together."""
    passage_tokens: int = 128
    """Most tokens of one."""
    template: str = TEMPLATE


@dataclass(frozen=True)
class Retrieval:
    """The passages nearest to the question, in the user's turn, nearest first."""

    passages: Sequence[Passage]
    retriever: Retriever
    settings: RetrievalSettings
    _found: dict[str, list[int]] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        """`rag-` and the retriever's name."""
        return f"rag-{self.retriever.name}"

    def messages(self, example: Example) -> tuple[Message, ...]:
        """The conversation up to the question, with passages in its last message.

        Where none is found the question stays as it is.
        """
        *before, last = example.question()
        found, _ = self.find(example)
        if not found:
            return (*before, last)
        # not str.format: passages and questions have braces of their own
        head, tail = self.settings.template.split("{question}")
        passages = "\n\n".join(passage.text for passage in found)
        parts = (part.replace("{passages}", passages) for part in (head, tail))
        return (*before, last | {"content": last["content"].join(parts)})

    def find(self, example: Example) -> tuple[list[Passage], list[Passage]]:
        """Passages for an example, and those that were left out because they are the example.

        A passage is the example if both its question and its answer stand in it: retrieved, it
        would measure copying. An answer that stands elsewhere is what retrieval is for.
        """
        query = str(example.question()[-1]["content"])
        itself = (_bare(query), _bare(example.answer()))
        found: list[Passage] = []
        left_out: list[Passage] = []
        budget = self.settings.max_tokens
        for passage in self._ranked(query):
            if len(found) == self.settings.top_k:
                break
            text = _bare(passage.text)
            if all(part in text for part in itself):
                left_out.append(passage)
            elif passage.tokens <= budget:
                found.append(passage)
                budget -= passage.tokens
        return found, left_out

    def _ranked(self, query: str) -> list[Passage]:
        if query not in self._found:
            # some more than are needed: a passage may be too long, or be left out
            self._found[query] = self.retriever.search(query, 4 * self.settings.top_k)
        return [self.passages[index] for index in self._found[query]]

    def record(self, examples: Sequence[Example]) -> dict[str, Any]:
        """What was retrieved for these examples, and how much of it tells their answers, as JSON.

        `answer_is_a_passage` and `answer_in_a_passage` count the questions whose answer is, or
        stands within, a passage that was put into the prompt; `left_out` the passages that were
        the example itself.
        """
        counts = {"without_passage": 0, "answer_is_a_passage": 0, "answer_in_a_passage": 0}
        retrieved = left_out = 0
        for example in examples:
            found, dropped = self.find(example)
            answer = _bare(example.answer())
            texts = [_bare(passage.text) for passage in found]
            retrieved += len(found)
            left_out += len(dropped)
            counts["without_passage"] += not found
            counts["answer_is_a_passage"] += answer in texts
            counts["answer_in_a_passage"] += bool(answer) and any(answer in text for text in texts)
        return {
            "settings": asdict(self.settings),
            "passages": len(self.passages),
            "questions": len(examples),
            "retrieved_mean": retrieved / max(1, len(examples)),
            "left_out": left_out,
            **counts,
        }


def build_retrieval(
    documents: Path,
    tokenizer: ModelTokenizer,
    settings: RetrievalSettings = RetrievalSettings(),
) -> Retrieval:
    """Split documents, index them, and give the prompting.

    Args:
        documents: see `read_passages`; or any other dataset (see `load_examples`), such as the
            training data.
        tokenizer: of the model, which counts tokens.
        settings: how.

    Raises:
        InputError: there are no documents, no such retriever, or the template lacks a part.
        MissingExtraError: the retriever's library is not installed.
    """
    if settings.retriever not in RETRIEVERS:
        raise InputError(
            f"there is no retriever {settings.retriever!r}; choose from {', '.join(RETRIEVERS)}"
        )
    for part in ("{passages}", "{question}"):
        if settings.template.count(part) != 1:
            raise InputError(
                f"the template {settings.template!r} has {part} {settings.template.count(part)} "
                "times; expected {passages} and {question} once each"
            )

    def count(text: str) -> int:
        return len(tokenizer.encode(text))

    if is_dataset(documents):
        passages = passages_of(
            load_examples(documents), documents.name, count, settings.passage_tokens
        )
    else:
        passages = read_passages(documents, count, settings.passage_tokens)
    texts = [passage.text for passage in passages]
    return Retrieval(passages, RETRIEVERS[settings.retriever](texts), settings)


def is_dataset(path: Path) -> bool:
    """Whether a path is a dataset in a form that documents do not have."""
    if path.is_dir():
        return any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))
    return path.suffix.lower() in (".csv", ".tsv", ".parquet")


def _bare(text: str) -> str:
    """A text without what does not matter when two are compared: case and white space."""
    return " ".join(text.lower().split())
