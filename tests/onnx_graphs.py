"""Run an exported graph in plain onnxruntime as it is: any batch, with and without a past."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeadapt.files import read_json


class Graph:
    """A session over a folder's graph; the KV cache goes in and out as arrays."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime as ort

        genai = read_json(folder / "genai_config.json")
        self._decoder: dict[str, Any] = genai["model"]["decoder"]
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        self._session = ort.InferenceSession(
            str(folder / self._decoder["filename"]), options, ["CPUExecutionProvider"]
        )
        self._inputs = {entry.name: entry for entry in self._session.get_inputs()}

    def logits(
        self, ids: npt.NDArray[np.int64], cuts: Sequence[int] = ()
    ) -> npt.NDArray[np.float32]:
        """Logits at every position, (batch, tokens, vocabulary).

        Args:
            ids: token ids, (batch, tokens).
            cuts: positions at which the text is cut: each part runs on the KV cache of those
                before it. Without cuts nothing ever has a past.
        """
        batch, tokens = ids.shape
        past = self._no_past(batch)
        parts = []
        for start, stop in zip((0, *cuts), (*cuts, tokens), strict=True):
            feeds = {
                "input_ids": ids[:, start:stop],
                "attention_mask": np.ones((batch, stop), np.int64),
                "position_ids": np.arange(start, stop, dtype=np.int64)[None].repeat(batch, 0),
            }
            feeds = {name: value for name, value in feeds.items() if name in self._inputs}
            values = dict(
                zip(
                    (entry.name for entry in self._session.get_outputs()),
                    self._session.run(None, feeds | past),
                    strict=True,
                )
            )
            parts.append(values[self._decoder["outputs"]["logits"]])
            past = {name: values[output] for name, output in self._cache().items()}
        return np.concatenate(parts, axis=1).astype(np.float32)

    def _cache(self) -> dict[str, str]:
        inputs, outputs = self._decoder["inputs"], self._decoder["outputs"]
        return {
            inputs[f"past_{kind}_names"] % layer: outputs[f"present_{kind}_names"] % layer
            for layer in range(self._decoder["num_hidden_layers"])
            for kind in ("key", "value")
        }

    def _no_past(self, batch: int) -> dict[str, npt.NDArray[Any]]:
        shape = (batch, self._decoder["num_key_value_heads"], 0, self._decoder["head_size"])
        types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
        return {name: np.zeros(shape, types[self._inputs[name].type]) for name in self._cache()}


def torch_logits(folder: Path, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """What transformers computes in float32, (batch, tokens, vocabulary)."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits: npt.NDArray[np.float32] = model(torch.from_numpy(ids)).logits.numpy()
    return logits
