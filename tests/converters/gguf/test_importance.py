"""With an importance matrix: types and blocks equal llama.cpp's, and the file format is its own."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeadapt.console import Advance
from edgeadapt.converters.base import ConversionRequest
from edgeadapt.converters.gguf import layout
from edgeadapt.converters.gguf.converter import GgufConverter
from edgeadapt.converters.gguf.imatrix import Entry, Imatrix, read_imatrix, write_imatrix
from edgeadapt.converters.gguf.layout import Placed
from edgeadapt.converters.gguf.mixes import MIXES, TENSOR_TYPES, ModelShape, choose_types
from edgeadapt.converters.gguf.options import GgufOptions
from edgeadapt.converters.gguf.plan import TensorPlan
from edgeadapt.converters.gguf.stream import _by_matrix, write_parts
from edgeadapt.errors import CorruptFileError, InputError
from edgeadapt.safetensors_io import SafetensorsSource
from edgeadapt.weights import Float32Array
from tests.converters.gguf.test_converter import tensors_of
from tests.tiny import save_llama

llama_cpp = pytest.importorskip("llama_cpp")

QUANTIZED = [name for name in MIXES if name not in {"F32", "F16", "BF16"}]
NO_ADVANCE: Advance = lambda *_, **__: None  # noqa: E731
COLUMNS = 256

# Before the first block of these, ggml searches through a grid for seconds, once in a process.
SLOW = {"IQ1_S", "IQ1_M", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS"}


def slow_ones_later(names: list[str]) -> list[object]:
    """The names as parameters; those that take long are left to the slow tests."""
    return [pytest.param(n, marks=[pytest.mark.e2e] if n in SLOW else []) for n in names]


def weights(model: ModelShape, *, tied: bool = True) -> dict[str, Float32Array]:
    """A model whose matrices have two rows: all that the rules and the blocks depend on."""
    random = np.random.default_rng(1)
    stack = (model.experts,) if model.experts else ()
    suffix = "_exps" if model.experts else ""
    names = ["token_embd", "output_norm"] + ([] if tied else ["output"])
    for layer in range(model.layers):
        names += [f"blk.{layer}.{part}" for part in ("attn_norm", "ffn_norm")]
        names += [f"blk.{layer}.attn_{part}" for part in ("q", "k", "v", "output")]
        names += [f"blk.{layer}.ffn_{part}{suffix}" for part in ("gate", "up", "down")]
        names += [f"blk.{layer}.ffn_gate_inp"] if model.experts else []
    shapes = {
        name: (COLUMNS,) if "norm" in name else (*(stack if "_exps" in name else ()), 2, COLUMNS)
        for name in names
    }
    return {
        f"{name}.weight": random.standard_normal(shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def imatrix_of(tensors: dict[str, Float32Array]) -> Imatrix:
    """Importance that differs by orders of magnitude, and one expert that saw nothing."""
    random = np.random.default_rng(2)
    entries = {}
    for name, values in tensors.items():
        if name.startswith("blk.") and values.ndim > 1:
            matrices = values.shape[0] if values.ndim > 2 else 1
            sums = (10 ** random.uniform(-3, 3, (matrices, COLUMNS))).astype(np.float32)
            counts = np.full(matrices, 7, np.float32)
            if matrices > 1:
                counts[1], sums[1] = 0, 0
            entries[name] = Entry(sums, counts)
    return Imatrix(entries, ("words.txt",), 3, 512, "i.gguf")


def write_gguf(
    path: Path, tensors: dict[str, Float32Array], model: ModelShape, mix: str, options: GgufOptions
) -> Path:
    """What the converter writes, without its vocabulary."""
    types = choose_types(
        {name: values.shape for name, values in tensors.items()}, mix, model, options.tensor_types
    )
    placed = [
        Placed(
            TensorPlan(name, values.shape, values=values),
            types[name],
            options.importance and options.importance.importance(name, values.shape)
            if values.ndim > 1
            else None,
        )
        for name, values in tensors.items()
    ]
    writer = gguf.GGUFWriter(None, "llama")
    layout.declare(writer, [placed])
    writer.add_file_type(int(MIXES[mix][0]))
    writer.add_block_count(model.layers)
    writer.add_context_length(64)
    writer.add_embedding_length(COLUMNS)
    writer.add_feed_forward_length(COLUMNS)
    writer.add_head_count(model.heads)
    writer.add_head_count_kv(model.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(2)
    if model.experts:
        writer.add_expert_count(model.experts)
        writer.add_expert_used_count(2)
    parts = layout.parts(writer, [tuple(placed)])
    write_parts(parts, [path], None, 2, NO_ADVANCE)  # type: ignore[arg-type]  # all is computed
    return path


def llama_quantize(source: Path, out: Path, mix: str, options: GgufOptions) -> None:
    """What the llama-quantize program does with --imatrix and --tensor-type."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = int(MIXES[mix][0]), 2
    keep: list[object] = []
    if options.importance is not None:
        entries = (llama_cpp.llama_model_imatrix_data * (len(options.importance.entries) + 1))()
        for slot, (name, entry) in zip(entries, options.importance.entries.items(), strict=False):
            mean = np.ascontiguousarray(entry.mean())
            keep.append(mean)
            slot.name, slot.size = name.encode(), mean.size
            slot.data = mean.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = entries
    if options.tensor_types:
        overrides = (llama_cpp.llama_model_tensor_override * (len(options.tensor_types) + 1))()
        for slot, (pattern, kind) in zip(overrides, options.tensor_types, strict=False):
            slot.pattern, slot.type = pattern.encode(), int(kind)
        overrides[len(options.tensor_types)].type = 10**6
        params.tt_overrides = overrides
    code = llama_cpp.llama_model_quantize(
        str(source).encode(), str(out).encode(), ctypes.byref(params)
    )
    assert code == 0


def assert_equal_files(ours: Path, theirs: Path) -> None:
    left, right = tensors_of(ours), tensors_of(theirs)
    assert {n: kind for n, (kind, _) in left.items()} == {n: kind for n, (kind, _) in right.items()}
    for name in left:
        assert left[name] == right[name], name


MODELS = {
    "dense": (ModelShape(16, 4, 2), True),
    "grouped-untied": (ModelShape(8, 8, 1), False),
    "eight-experts": (ModelShape(8, 4, 4, experts=8), False),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("mix", slow_ones_later(QUANTIZED))
def test_types_and_blocks_equal_llama_quantize(mix: str, model: str, tmp_path: Path) -> None:
    shape, tied = MODELS[model]
    tensors = weights(shape, tied=tied)
    options = GgufOptions(imatrix_of(tensors))
    write_gguf(tmp_path / "f32.gguf", tensors, shape, "F32", GgufOptions())
    ours = write_gguf(
        tmp_path / "ours.gguf", tensors, replace(shape, importance=True), mix, options
    )
    llama_quantize(tmp_path / "f32.gguf", tmp_path / "theirs.gguf", mix, options)
    assert_equal_files(ours, tmp_path / "theirs.gguf")


@pytest.mark.parametrize("kind", slow_ones_later(list(TENSOR_TYPES)))
def test_tensor_types_equal_llama_quantize(kind: str, tmp_path: Path) -> None:
    shape = ModelShape(2, 4, 2)
    tensors = weights(shape)
    types = (("ffn_(up|down)", TENSOR_TYPES[kind]), ("ffn", TENSOR_TYPES["Q8_0"]))
    options = GgufOptions(imatrix_of(tensors), types)
    write_gguf(tmp_path / "f32.gguf", tensors, shape, "F32", GgufOptions())
    ours = write_gguf(
        tmp_path / "ours.gguf", tensors, replace(shape, importance=True), "Q4_K_M", options
    )
    llama_quantize(tmp_path / "f32.gguf", tmp_path / "theirs.gguf", "Q4_K_M", options)
    assert_equal_files(ours, tmp_path / "theirs.gguf")
    assert tensors_of(ours)["blk.0.ffn_up.weight"][0] == kind
    assert tensors_of(ours)["blk.0.ffn_gate.weight"][0] == "Q8_0"


@given(height=st.integers(1, 5), matrices=st.integers(1, 4), data=st.data())
def test_rows_meet_their_own_importance(height: int, matrices: int, data: st.DataObject) -> None:
    total = height * matrices
    start = data.draw(st.integers(0, total - 1))
    stop = data.draw(st.integers(start + 1, total))
    rows = np.arange(total, dtype=np.float32)[:, None]
    importance = np.arange(matrices, dtype=np.float32)[:, None]
    seen = []
    for piece, weight in _by_matrix(rows[start:stop], start, height, importance):
        seen += [(int(row), int(weight[0])) for row in piece[:, 0]]
    assert seen == [(row, row // height) for row in range(start, stop)]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide") / "m"
    return save_llama(folder, hidden=256, intermediate=256, layers=1)


def convert(folder: Path, out: Path, mix: str, options: GgufOptions) -> Path:
    request = ConversionRequest(
        SafetensorsSource(folder), folder, mix, "tiny", threads=2, gguf=options
    )
    return GgufConverter().convert(request, out).path


def model_imatrix(folder: Path) -> Imatrix:
    plain = convert(folder, folder.parent / "plain.gguf", "F32", GgufOptions())
    tensors = {t.name: np.array(t.data) for t in gguf.GGUFReader(plain).tensors}
    plain.unlink()
    return imatrix_of(tensors)


@pytest.mark.parametrize("mix", ["IQ2_XXS", "Q2_K_S", "IQ3_XS", "Q4_K_M"])
def test_the_converter_weighs_and_records(mix: str, wide: Path, tmp_path: Path) -> None:
    options = GgufOptions(model_imatrix(wide))
    source = convert(wide, tmp_path / "f32.gguf", "F32", GgufOptions())
    ours = convert(wide, tmp_path / "ours.gguf", mix, options)
    llama_quantize(source, tmp_path / "theirs.gguf", mix, options)
    assert_equal_files(ours, tmp_path / "theirs.gguf")
    fields = gguf.GGUFReader(ours).fields
    assert fields["quantize.imatrix.file"].contents() == "i.gguf"
    assert fields["quantize.imatrix.dataset"].contents() == "words.txt"
    assert fields["quantize.imatrix.entries_count"].contents() == 7
    assert fields["quantize.imatrix.entries_count"].types == [gguf.GGUFValueType.UINT32]
    assert fields["quantize.imatrix.chunks_count"].contents() == 3
    if mix == "Q4_K_M":  # where it is not needed it still changes the blocks
        plain = convert(wide, tmp_path / "plain.gguf", mix, GgufOptions())
        assert tensors_of(plain)["blk.0.ffn_up.weight"] != tensors_of(ours)["blk.0.ffn_up.weight"]


def test_written_and_read_back(tmp_path: Path) -> None:
    made = imatrix_of(weights(ModelShape(2, 4, 2, experts=4)))
    write_imatrix(made, tmp_path / "i.gguf")
    read = read_imatrix(tmp_path / "i.gguf")
    assert (read.datasets, read.chunk_count, read.chunk_size) == (("words.txt",), 3, 512)
    assert read.entries.keys() == made.entries.keys()
    for name, entry in made.entries.items():
        np.testing.assert_array_equal(read.entries[name].sums, entry.sums)
        np.testing.assert_array_equal(read.entries[name].counts, entry.counts)


def test_the_file_is_llama_cpps(tmp_path: Path) -> None:
    write_imatrix(imatrix_of(weights(ModelShape(1, 4, 2, experts=4))), tmp_path / "i.gguf")
    reader = gguf.GGUFReader(tmp_path / "i.gguf")
    keys = [key for key in reader.fields if not key.startswith("GGUF.")]
    assert keys == [
        "general.type", "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size",
    ]  # fmt: skip
    shapes = {tensor.name: list(tensor.shape) for tensor in reader.tensors}
    assert shapes["blk.0.attn_q.weight.in_sum2"] == [256, 1]  # ggml's order: columns first
    assert shapes["blk.0.attn_q.weight.counts"] == [1, 1]
    assert shapes["blk.0.ffn_down_exps.weight.in_sum2"] == [256, 4]
    assert shapes["blk.0.ffn_down_exps.weight.counts"] == [1, 4]
    assert "token_embd.weight.in_sum2" not in shapes


def one(sums: list[float], counts: list[float]) -> dict[str, Entry]:
    values = np.array(sums, np.float32).reshape(len(counts), -1)
    return {"blk.0.attn_q.weight": Entry(values, np.array(counts, np.float32))}


@pytest.mark.parametrize(
    "entries",
    [
        one([1, float("nan")], [1]),
        one([1, float("inf")], [1]),
        one([1, -1], [1]),
        one([0, 0], [5]),
        one([1, 1], [float("nan")]),
    ],
)
def test_impossible_numbers_are_refused(entries: dict[str, Entry], tmp_path: Path) -> None:
    write_imatrix(Imatrix(entries), tmp_path / "i.gguf")
    with pytest.raises(CorruptFileError, match="attn_q"):
        read_imatrix(tmp_path / "i.gguf")


def test_what_is_no_imatrix_is_refused(tmp_path: Path, tiny_gguf: Path) -> None:
    old = tmp_path / "old.dat"
    old.write_bytes((3).to_bytes(4, "little") + b"\0" * 64)
    for path, words in ((old, "llama-imatrix"), (tiny_gguf, "general.type"), (tmp_path / "x", "x")):
        with pytest.raises(InputError, match=words):
            read_imatrix(path)
    write_imatrix(imatrix_of(weights(ModelShape(1, 4, 2))), tmp_path / "i.gguf")
    whole = (tmp_path / "i.gguf").read_bytes()
    for size in (6, 100, len(whole) // 2, len(whole) - 64):
        (tmp_path / "cut.gguf").write_bytes(whole[:size])
        with pytest.raises(CorruptFileError):
            read_imatrix(tmp_path / "cut.gguf")


def test_anothers_imatrix_is_refused(wide: Path, tmp_path: Path) -> None:
    good = model_imatrix(wide)
    first = next(iter(good.entries))
    narrow = Imatrix({first: Entry(np.ones((1, 64), np.float32), np.ones(1, np.float32))})
    strange = Imatrix({"blk.99.attn_q.weight": good.entries[first]})
    partial = Imatrix({first: good.entries[first]})
    for imatrix, words in ((narrow, "another model"), (strange, "no tensor"), (partial, "lacks")):
        with pytest.raises(InputError, match=words):
            convert(wide, tmp_path / "m.gguf", "IQ2_XS", GgufOptions(imatrix))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("mix", "pattern", "words"),
    [("Q4_K_M", "no_such", "matches no tensor"), ("F16", "ffn", "quantizes nothing"),
     ("Q4_K_M", "attn_norm", "matches no tensor")],
)  # fmt: skip
def test_overrides_without_effect_are_refused(
    mix: str, pattern: str, words: str, tiny_model: Path, tmp_path: Path
) -> None:
    options = GgufOptions(tensor_types=((pattern, TENSOR_TYPES["Q8_0"]),))
    with pytest.raises(InputError, match=words):
        convert(tiny_model, tmp_path / "m.gguf", mix, options)
    assert list(tmp_path.iterdir()) == []
