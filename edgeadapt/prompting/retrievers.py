"""Which passages are about a question: by words (BM25), or by sentence embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from edgeadapt.extras import need


class Retriever(Protocol):
    """Ranks texts that it was made from."""

    name: str

    def search(self, query: str, count: int) -> list[int]:
        """Numbers of the texts most like a query, best first; at most `count`.

        A text that has nothing in common with the query is left out.
        """
        ...


class Bm25:
    """Okapi BM25 in Lucene's form, by bm25s, over words in lower case without English stop words.

    Dots and underscores part words, so that `os.path.join` is found by `join`.
    """

    name = "bm25"

    def __init__(self, texts: Sequence[str]) -> None:
        self._bm25s = need("bm25s", "retrieval with BM25")
        self._index: Any = self._bm25s.BM25()
        words = self._words([text.replace("_", " ") for text in texts])
        self._size = len(texts)
        # bm25s cannot index texts without a single word among them.
        self._empty = not any(words)
        if not self._empty:
            self._index.index(words, show_progress=False)

    def search(self, query: str, count: int) -> list[int]:
        """See `Retriever`."""
        words = self._words([query.replace("_", " ")])
        if self._empty or not words[0]:
            return []
        found, scores = self._index.retrieve(
            words, k=min(count, self._size), show_progress=False, n_threads=0
        )
        return [int(i) for i, score in zip(found[0], scores[0], strict=True) if score > 0]

    def _words(self, texts: list[str]) -> list[list[str]]:
        words: list[list[str]] = self._bm25s.tokenize(
            texts, stopwords="en", return_ids=False, show_progress=False
        )
        return words


class Embeddings:
    """Cosine similarity of sentence embeddings."""

    name = "embeddings"

    def __init__(self, texts: Sequence[str]) -> None:
        from edgeadapt.prompting.embedder import Embedder

        self._embedder = Embedder()
        self._texts = self._embedder.embed(texts)

    def search(self, query: str, count: int) -> list[int]:
        """See `Retriever`; the likeness of embeddings has no floor, so `count` texts are found."""
        likeness = self._texts @ self._embedder.embed([query])[0]
        return [int(index) for index in np.argsort(-likeness, kind="stable")[:count]]


RETRIEVERS: dict[str, Callable[[Sequence[str]], Retriever]] = {
    Bm25.name: Bm25,
    Embeddings.name: Embeddings,
}
