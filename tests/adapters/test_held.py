"""The base as QLoRA held it equals what bitsandbytes gives back, and the live model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import bitsandbytes
import numpy as np
import pytest
import torch
import transformers
from bitsandbytes import functional
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig

from edgeadapt.adapters import read_spec
from edgeadapt.adapters.four_bit import (
    BLOCK,
    codebook,
    dynamic_codebook,
    eight_bit,
    magnitudes,
    round_trip,
)
from edgeadapt.adapters.held import HELD_AS, HeldBase, HeldSource, held_base
from edgeadapt.errors import AdapterError, InputError, UnsupportedError
from edgeadapt.export import open_model
from edgeadapt.safetensors_io import SafetensorsSource
from edgeadapt.training.quantization import Nf4Settings, bitsandbytes_config, dequantized
from edgeadapt.weights import TensorInfo, read_tensor, row_chunks
from tests.adapters.test_merged import save_adapter
from tests.tiny import save_model


def theirs(weight: torch.Tensor, format: str) -> torch.Tensor:
    kind, _, double = format.partition("-")
    packed, state = functional.quantize_4bit(
        weight, blocksize=BLOCK, quant_type=kind, compress_statistics=bool(double)
    )
    # A single packed byte it takes for a transposed weight, and of rows that are no multiple of 64
    # its AVX512 kernel reads the wrong magnitudes.
    state.shape = torch.Size((1, weight.numel()))
    return functional.dequantize_4bit(packed, state).reshape(weight.shape)


class OneTensor:
    """A base of a single linear layer."""

    NAME = "model.layers.0.mlp.up_proj.weight"

    def __init__(self, weight: torch.Tensor, **config: int) -> None:
        self.weight = weight.float().numpy()
        self.config = config
        self.read = 0

    def tensors(self) -> dict[str, TensorInfo]:
        return {self.NAME: TensorInfo(self.NAME, self.weight.shape, "F32")}

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        self.read = max(self.read, stop - start)
        return self.weight[start:stop].copy()


def test_the_eight_bit_codebook_is_bitsandbytes_own() -> None:
    assert np.array_equal(dynamic_codebook(), functional.create_dynamic_map().numpy())


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_the_four_bit_codebooks_are_bitsandbytes_own(kind: str) -> None:
    own = functional.get_4bit_type(kind, device="cpu").numpy()
    assert np.array_equal(codebook(kind), np.unique(own))


@given(
    rows=st.integers(1, 9), columns=st.integers(1, 150), seed=st.integers(0, 999),
    scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e20]), kind=st.sampled_from(["nf4", "fp4"]),
)  # fmt: skip
def test_each_number_is_that_of_bitsandbytes(
    rows: int, columns: int, seed: int, scale: float, kind: str
) -> None:
    torch.manual_seed(seed)
    weight = torch.randn(rows, columns) * scale
    weight[torch.rand(rows, columns) < 0.2] = 0
    mine = round_trip(weight.numpy().reshape(-1), kind).reshape(rows, columns)
    assert np.array_equal(mine, theirs(weight, kind).numpy())


@pytest.mark.parametrize("format", ["nf4-double", "fp4-double"])
def test_double_quantization_is_that_of_bitsandbytes_but_for_the_mean(format: str) -> None:
    torch.manual_seed(0)
    weight = torch.randn(600, 576) * 0.02
    flat = weight.numpy().reshape(-1)
    kind = format.partition("-")[0]
    mine = round_trip(flat, kind, eight_bit(magnitudes(flat))).reshape(weight.shape)
    other = theirs(weight, format).numpy()
    # The mean is summed in another order; a magnitude in between two steps may take the other.
    assert np.isclose(mine, other, rtol=1e-6, atol=1e-8).mean() > 0.998
    assert np.abs(mine - other).max() < 0.01 * np.abs(other).max()


@pytest.mark.parametrize("format", HELD_AS)
@pytest.mark.parametrize("shape", [(7, 100), (64, 66), (3, 33), (40, 64), (200, 3)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_do_not_depend_on_how_they_are_asked_for(
    format: str, shape: tuple[int, int], dtype: str
) -> None:
    torch.manual_seed(0)
    base = OneTensor(torch.randn(*shape))
    source = HeldSource(base, HeldBase(format, dtype))
    whole = read_tensor(source, base.NAME)
    for step in (1, 2, 3, 50):
        ranges = [(i, min(i + step, shape[0])) for i in range(0, shape[0], step)]
        parts = [source.rows(base.NAME, i, j) for i, j in ranges]
        assert np.array_equal(np.concatenate(parts), whole)
    loaded = torch.from_numpy(base.weight).to(getattr(torch, dtype))
    expected = theirs(loaded, format).float().numpy()
    assert np.allclose(whole, expected, rtol=1e-2 if dtype == "bfloat16" else 1e-5, atol=1e-6)
    if "-" not in format:
        assert np.array_equal(whole, expected)


@pytest.mark.parametrize("format", ["nf4", "nf4-double"])
def test_no_more_is_read_at_once_than_is_asked_for(format: str) -> None:
    base = OneTensor(torch.randn(3000, 1000))
    source = HeldSource(base, HeldBase(format))
    info = base.tensors()[base.NAME]
    chunks = list(row_chunks(info, 1 << 18))
    for start, stop in chunks:
        source.rows(base.NAME, start, stop)
    # A row more at either end, for blocks that run across; magnitudes are read in chunks of 8 MiB.
    most = (8 << 20) // 4000 if format == "nf4-double" else chunks[0][1] + 2
    assert 0 < base.read <= most


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "phi3"])
def test_the_layers_are_those_that_transformers_quantizes(family: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path / family, family, tied=False, tokenizer=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        quantization_config=bitsandbytes_config(Nf4Settings("float32", False, "test")),
        device_map={"": "cpu"},
    )
    layers = {
        f"{name}.weight": module.weight
        for name, module in model.named_modules()
        if isinstance(module, bitsandbytes.nn.Linear4bit)
    }
    source = HeldSource(SafetensorsSource(folder), HeldBase("nf4"))
    assert source.layers == layers.keys()
    for name, weight in layers.items():
        own = dequantized(weight).numpy()
        assert np.array_equal(read_tensor(source, name), own), name


def test_experts_need_a_record_of_the_layers() -> None:
    base = OneTensor(torch.randn(8, 64), num_local_experts=4)
    with pytest.raises(UnsupportedError, match="experts"):
        HeldSource(base, HeldBase("nf4"))
    layer = base.NAME.removesuffix(".weight")
    assert HeldSource(base, HeldBase("nf4", layers=(layer,))).layers == {base.NAME}
    with pytest.raises(AdapterError, match="does not have"):
        HeldSource(base, HeldBase("nf4", layers=("model.other",)))


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("held") / "adapter"
    return save_adapter(tiny_model, path, LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))


def recorded(adapter: Path, place: Path, **record: object) -> Path:
    place.mkdir()
    for path in adapter.iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    (place / "edgeadapt.json").write_text(json.dumps(record))
    return place


def held(paths: Sequence[Path], stated: str | None = None) -> HeldBase | None:
    return held_base([read_spec(path) for path in paths], stated)


def test_what_the_record_says_goes(adapter: Path, tmp_path: Path) -> None:
    nf4 = recorded(adapter, tmp_path / "a", quantization="nf4")
    double = recorded(
        adapter, tmp_path / "b", quantization="nf4-double",
        held={"dtype": "float16", "layers": ["model.layers.0.self_attn.q_proj"]},
    )  # fmt: skip
    plain = recorded(adapter, tmp_path / "c", quantization="bfloat16")
    assert held([nf4]) == HeldBase("nf4", "float32", None)
    assert held([double]) == HeldBase("nf4-double", "float16", ("model.layers.0.self_attn.q_proj",))
    assert held([plain]) is None
    assert held([adapter], "nf4-double") == HeldBase("nf4-double")
    assert held([adapter], "none") is None
    for paths, stated, error in (
        ([adapter], None, InputError),
        ([adapter], "int8", InputError),
        ([nf4], "fp4", AdapterError),
        ([nf4, double], None, AdapterError),
    ):
        with pytest.raises(error):
            held(paths, stated)


def test_only_the_quantized_layers_change(adapter: Path, tiny_model: Path, tmp_path: Path) -> None:
    place = recorded(adapter, tmp_path / "a", quantization="nf4")
    merged = open_model(str(tiny_model), place, merge_onto="quantized")
    assert merged.lineage["merge"]["onto"] == "quantized"
    assert merged.lineage["merge"]["held"] == {"format": "nf4", "dtype": "float32"}
    base = SafetensorsSource(tiny_model)
    for name in base.tensors():
        same = np.array_equal(read_tensor(base, name), read_tensor(merged.source, name))
        assert same == (not name.endswith("_proj.weight")), name
    with pytest.raises(InputError, match="floating point"):
        float_ = recorded(adapter, tmp_path / "b", quantization="float32")
        open_model(str(tiny_model), float_, merge_onto="quantized")
