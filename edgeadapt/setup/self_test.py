"""Does the installed llama.cpp compute on this CPU? Run as a program: it may well be killed.

`python -m edgeadapt.setup.self_test` writes two tiny Llama models with the same weights, one
quantized as a Q4_K_M file is (Q4_K, Q6_K, with Q4_0 and Q8_0 beside them), one in float32, decodes
the same tokens with both and compares the logits. A library built for another CPU dies at its
first wrong instruction; kernels that compute nonsense are caught by the comparison. The rows are
multiples of 8, so llama.cpp rearranges ("repacks") the quantized weights where it has kernels for
that, and a prompt and single tokens go through its matrix and its vector kernels.

With `--gpu`, all layers of both are given to a GPU.

Exit codes: 0 it works, 3 it computes wrongly, 4 it is not installed or does not load, 5 it was
built for instructions that this CPU lacks, 6 it sees no GPU; killed by a signal otherwise. The last
line of output says it in words.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as _Type

from edgeadapt.cpu import this_cpu
from edgeadapt.setup.cpu import foreign_build, lacking
from edgeadapt.setup.llama_cpp import build_record

_HIDDEN, _HEADS, _FEED_FORWARD, _LAYERS, _VOCAB = 256, 4, 512, 2, 512
_PROMPT, _SINGLES, _THREADS = 32, 4, 2
_TOLERANCE = 0.1
"""Of the logits' root mean square. Rounding activations to 8 bits gives about 0.03."""

WRONG, NOT_LOADED, FOREIGN, NO_GPU = 3, 4, 5, 6

_Floats = npt.NDArray[np.float32]
_Bytes = npt.NDArray[np.uint8]


def main(*, gpu: bool = False) -> int:
    """Run the test, perhaps on a GPU; returns the exit code."""
    built, cpu = build_record(), this_cpu()
    if built and (lacks := lacking(built["options"], cpu)):
        print(foreign_build(lacks, cpu.name))  # noqa: T201
        return FOREIGN
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError) as error:
        print(f"llama_cpp does not load: {error}")  # noqa: T201
        return NOT_LOADED
    llama_cpp.llama_log_set(_silent(llama_cpp), ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    if gpu and not llama_cpp.llama_supports_gpu_offload():
        print("the installed llama.cpp sees no GPU")  # noqa: T201
        return NO_GPU
    with tempfile.TemporaryDirectory(prefix="edgeadapt-") as folder:
        layers = -1 if gpu else 0  # below 0: all
        files = write_models(Path(folder))
        quantized, exact = (_decode(llama_cpp, path, layers) for path in files)
    text, code = judge(quantized, exact)
    print(text)  # noqa: T201
    return code


def judge(quantized: _Floats, exact: _Floats) -> tuple[str, int]:
    """Compare logits of both models, any equal shapes; returns a sentence and the exit code."""
    if not (np.isfinite(quantized).all() and np.isfinite(exact).all()):
        return "logits are not finite", WRONG
    error = float(np.sqrt(np.mean((quantized - exact) ** 2) / np.mean(exact**2)))
    if error > _TOLERANCE:
        return f"quantized logits are off by {error:.0%} of their size", WRONG
    return f"quantized logits are within {error:.1%} of float32's", 0


def write_models(folder: Path) -> tuple[Path, Path]:
    """Write the quantized and the float32 model; returns their paths."""
    random = np.random.default_rng(0)
    paths = folder / "quantized.gguf", folder / "float32.gguf"
    with contextlib.ExitStack() as stack:
        writers = [gguf.GGUFWriter(path, "llama") for path in paths]
        for writer in writers:
            stack.callback(writer.close)
            _add_metadata(writer)
        for name, shape, kind in _tensors():
            raw, value = _random_tensor(random, shape, kind)
            if kind == _Type.F32:
                writers[0].add_tensor(name, value)
            else:
                writers[0].add_tensor(name, raw, raw_dtype=kind)
            writers[1].add_tensor(name, value)
        for writer in writers:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
    return paths


def _add_metadata(writer: gguf.GGUFWriter) -> None:
    writer.add_context_length(_PROMPT + _SINGLES)
    writer.add_embedding_length(_HIDDEN)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(_FEED_FORWARD)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_HEADS)
    writer.add_rope_dimension_count(_HIDDEN // _HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(_VOCAB)
    writer.add_tokenizer_model("no_vocab")


def _tensors() -> list[tuple[str, tuple[int, ...], _Type]]:
    square = (_HIDDEN, _HIDDEN)
    found: list[tuple[str, tuple[int, ...], _Type]] = [
        ("token_embd.weight", (_VOCAB, _HIDDEN), _Type.Q8_0),
        ("output.weight", (_VOCAB, _HIDDEN), _Type.Q6_K),
        ("output_norm.weight", (_HIDDEN,), _Type.F32),
    ]
    for layer in range(_LAYERS):
        prefix = f"blk.{layer}."
        found += [
            (prefix + "attn_norm.weight", (_HIDDEN,), _Type.F32),
            (prefix + "attn_q.weight", square, _Type.Q4_0),
            (prefix + "attn_k.weight", square, _Type.Q4_K),
            (prefix + "attn_v.weight", square, _Type.Q6_K),
            (prefix + "attn_output.weight", square, _Type.Q8_0),
            (prefix + "ffn_norm.weight", (_HIDDEN,), _Type.F32),
            (prefix + "ffn_gate.weight", (_FEED_FORWARD, _HIDDEN), _Type.Q4_0),
            (prefix + "ffn_up.weight", (_FEED_FORWARD, _HIDDEN), _Type.Q4_K),
            (prefix + "ffn_down.weight", (_HIDDEN, _FEED_FORWARD), _Type.Q4_K),
        ]
    return found


def _random_tensor(
    random: np.random.Generator, shape: tuple[int, ...], kind: _Type
) -> tuple[_Bytes, _Floats]:
    """A tensor's blocks and the values that they stand for."""
    if kind == _Type.F32:
        value = random.uniform(0.5, 1.5, shape).astype(np.float32)
        return value.view(np.uint8), value
    if kind in _K_BLOCKS:
        raw = _random_blocks(random, shape, kind)
    else:
        weights = (random.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
        raw = gguf.quants.quantize(weights, kind)
    return raw, gguf.quants.dequantize(raw, kind)


# The package `gguf` reads K-quants but does not write them, so their blocks are drawn as bytes:
# offsets of the block's float16 scales (block_q4_K and block_q6_K in ggml-common.h), and values
# for these that make weights of a sensible size.
_K_BLOCKS: dict[_Type, tuple[tuple[int, float], ...]] = {
    _Type.Q4_K: ((0, 2.4e-4), (2, 1.8e-3)),
    _Type.Q6_K: ((208, 4.6e-5),),
}


def _random_blocks(random: np.random.Generator, shape: tuple[int, ...], kind: _Type) -> _Bytes:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = random.integers(0, 256, (*shape[:-1], shape[-1] // block, size), dtype=np.uint8)
    for offset, scale in _K_BLOCKS[kind]:
        blocks[..., offset : offset + 2] = np.array([scale], np.float16).view(np.uint8)
    return blocks.reshape(*shape[:-1], -1)


def _silent(llama_cpp: Any) -> Any:
    global _callback
    _callback = llama_cpp.llama_log_callback(lambda level, text, data: None)
    return _callback


_callback: Any = None  # C keeps a bare pointer to it


def _decode(llama_cpp: Any, path: Path, gpu_layers: int) -> _Floats:
    """Logits after the prompt and after each single token, shape (1 + singles, vocabulary)."""
    parameters = llama_cpp.llama_model_default_params()
    parameters.n_gpu_layers = gpu_layers
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
    if not model:
        raise SystemExit(f"llama.cpp does not load {path.name}")
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = _PROMPT + _SINGLES
    settings.n_threads = settings.n_threads_batch = _THREADS
    context = llama_cpp.llama_init_from_model(model, settings)
    if not context:
        raise SystemExit("llama.cpp does not make a context")
    tokens = np.random.default_rng(1).integers(0, _VOCAB, _PROMPT + _SINGLES).tolist()
    parts = [tokens[:_PROMPT], *([token] for token in tokens[_PROMPT:])]
    rows = []
    for part in parts:
        buffer = (llama_cpp.llama_token * len(part))(*part)
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(buffer, len(part))):
            raise SystemExit("llama_decode failed")
        logits = llama_cpp.llama_get_logits_ith(context, -1)
        rows.append(np.ctypeslib.as_array(logits, (_VOCAB,)).copy())
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return np.stack(rows)


if __name__ == "__main__":
    sys.exit(main(gpu="--gpu" in sys.argv[1:]))
