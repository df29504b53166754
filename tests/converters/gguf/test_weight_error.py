"""The error of each tensor is what its blocks read back as, beside the float model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeadapt.converters.gguf.weight_error import weight_errors
from edgeadapt.errors import InputError
from edgeadapt.export import export, open_model
from edgeadapt.gguf_io import GgufFile
from tests.tiny import save_llama

pytest.importorskip("llama_cpp")


def test_floats_lose_nothing_and_quantized_tensors_what_numpy_says(
    tiny_model: Path, tmp_path: Path
) -> None:
    model = open_model(str(tiny_model))
    exact = export(model, "gguf", "F32", tmp_path / "f32.gguf")
    lossless = weight_errors(exact.files, model.source)
    assert lossless and all(tensor.error == 0 and tensor.energy > 0 for tensor in lossless)
    made = export(model, "gguf", "Q4_0", tmp_path / "q4.gguf")
    floats, stored = GgufFile(exact.path), GgufFile(made.path)
    for tensor in weight_errors(made.files, model.source):
        rows = floats.tensors[tensor.name].shape[0]
        wanted = floats.rows(tensor.name, 0, rows)
        expected = np.square(stored.rows(tensor.name, 0, rows) - wanted).sum()
        assert tensor.error == pytest.approx(expected, rel=1e-4), tensor.name
        assert tensor.type == stored.tensors[tensor.name].type.name
        assert (tensor.layer is None) != tensor.name.startswith("blk.")
    assert {tensor.layer for tensor in lossless} >= {None, 0, 1}


def test_a_file_of_another_model_is_refused(tiny_gguf: Path, tmp_path: Path) -> None:
    other = save_llama(tmp_path / "other", hidden=128)
    with pytest.raises(InputError, match="made from another model"):
        weight_errors([tiny_gguf], open_model(str(other)).source)
