"""The KL divergence that rounding really causes, on the calibration text.

In torch to the end, where the logits are: `fidelity.metrics` compares what engines give, in NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeadapt.extras import need

_ROWS = 128
"""Positions whose logits are worked on at once."""


class Reference:
    """What the unrounded model says of a text: log probabilities in float16."""

    def __init__(self, model: Any, chunks: Sequence[Sequence[int]]) -> None:
        self._torch = need("torch", "measuring a divergence")
        self._model = model
        self._chunks = [self._torch.tensor([list(chunk)]) for chunk in chunks]
        self._expected = [self._log_probs(chunk).half() for chunk in self._chunks]

    @property
    def tokens(self) -> int:
        """Number of positions."""
        return sum(chunk.shape[1] for chunk in self._chunks)

    def divergence(self) -> npt.NDArray[np.float64]:
        """KL(reference || the model as it is now) of each chunk, mean over positions, in nats."""
        torch, means = self._torch, []
        for chunk, kept in zip(self._chunks, self._expected, strict=True):
            given = self._log_probs(chunk)
            total = 0.0
            for start in range(0, len(kept), _ROWS):
                expected = kept[start : start + _ROWS].float()
                expected -= expected.logsumexp(-1, keepdim=True)  # float16 rounded it
                terms = expected.exp() * (expected - given[start : start + _ROWS])
                total += float(terms.sum(dtype=torch.float64))
            means.append(max(total, 0.0) / len(kept))
        return np.array(means)

    def _log_probs(self, chunk: Any) -> Any:
        with self._torch.inference_mode():
            logits = self._model(input_ids=chunk, use_cache=False).logits[0]
            return logits.float().log_softmax(-1)
