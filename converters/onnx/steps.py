"""The child process of an ONNX export: `python -m edgeadapt.converters.onnx.steps JOB`.

JOB is JSON: `steps`, each with the name of a function here as `step` and its arguments, and
`report`, a file that receives `{"error": ...}` or `{"peak_bytes": ...}`. The process ends when its
standard input closes, so that it does not outlive a parent that was killed.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def _end_with_parent() -> None:
    def wait() -> None:
        os.read(sys.stdin.fileno(), 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def build(source: str, out: str, cache: str, precision: str, options: dict[str, str]) -> None:
    """Run onnxruntime-genai's builder on a float32 model folder.

    Args:
        source: a Hugging Face folder.
        out: an existing folder, which gets the graph and its companions.
        cache: a scratch folder.
        precision: `fp32`, `fp16`, `int8` or `int4`.
        options: the builder's extra options.
    """
    _check_weights(Path(source))
    from onnxruntime_genai.models import builder

    where = ("", source, out, precision, "cpu", cache)
    pairs = [f"{key}={value}" for key, value in options.items()]
    parsed = builder.parse_extra_options(*where, pairs)
    _spell_out(parsed["hf_details"]["hf_config"])
    _share_8_bit_embeddings(builder.Model)
    _fuse_float16_attention(builder.Model)
    builder.create_model(*where, **parsed)


def nbits(folder: str, **settings: Any) -> None:
    """Quantize the remaining matrices of a graph in blocks; see `quantize.quantize_blocks`."""
    from edgeadapt.converters.onnx.quantize import quantize_blocks

    quantize_blocks(Path(folder), **settings)


def dynamic(folder: str, preset: str) -> None:
    """Quantize a graph to int8 weights and activations; see `quantize.quantize_dynamically`."""
    from edgeadapt.converters.onnx.quantize import quantize_dynamically

    quantize_dynamically(Path(folder), preset)


STEPS: dict[str, Callable[..., None]] = {"build": build, "nbits": nbits, "dynamic": dynamic}


def _check_weights(folder: Path) -> None:
    """Refuse a folder that lacks tensors: transformers would fill them with random numbers."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from edgeadapt.safetensors_io import SafetensorsFile

    stored = SafetensorsFile(folder / "model.safetensors").tensors()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    for name, parameter in model.named_parameters():
        if name not in stored:
            raise ValueError(f"the model has no tensor {name}, which its config.json asks for")
        found, expected = stored[name].shape, tuple(parameter.shape)
        if found != expected:
            raise ValueError(f"tensor {name} has shape {found}, its config.json says {expected}")


def _spell_out(config: Any) -> None:
    """Say in the builder's words what transformers' config leaves to the model's code.

    The builder (0.18) takes layers without `layer_types` for full attention, reads Gemma 3's two
    rotary bases from where transformers 4 kept them, and looks for `type` in Phi's longrope.
    """
    window = getattr(config, "sliding_window", None)
    if config.model_type in ("mistral", "phi3") and window:
        config.layer_types = ["sliding_attention"] * config.num_hidden_layers
    rope = getattr(config, "rope_parameters", None) or {}
    if config.model_type == "gemma3_text":
        config.rope_local_base_freq = rope["sliding_attention"]["rope_theta"]
        config.rope_parameters = rope["full_attention"]
    elif "rope_type" in rope:
        config.rope_parameters = {**rope, "type": rope["rope_type"]}


def _share_8_bit_embeddings(model: Any) -> None:
    """Let the embedding read an 8-bit head as it does a 4-bit one.

    The builder (0.18) shares quantized weights in int4 exports only, also where the head that it
    shares there has 8 bits; in int8 exports it would keep a float32 table beside the head.
    """
    decide = model.make_tied_embeddings_init

    def make_tied_embeddings_init(self: Any, config: Any) -> None:
        decide(self, config)
        if self.extra_options.get("shared_embeddings") and self.is_lm_head_quantized():
            self.tied_quantized_embeddings, self.tied_unquantized_embeddings = True, False

    model.make_tied_embeddings_init = make_tied_embeddings_init


def _fuse_float16_attention(model: Any) -> None:
    """Write the same attention for float16 on a CPU as for float32.

    The builder (0.18) holds GroupQueryAttention to be float32 on a CPU and spells attention out,
    with a past that grows by copies; onnxruntime has had the float16 kernel since 1.20.
    """
    import onnx_ir

    def or_float16_on_cpu(decide: Callable[[Any], bool]) -> Callable[[Any], bool]:
        def supported(self: Any) -> bool:
            half = self.ep == "cpu" and self.io_dtype == onnx_ir.DataType.FLOAT16
            return half or decide(self)

        return supported

    for name in ("is_gqa_supported", "is_packed_attn_supported"):
        setattr(model, name, or_float16_on_cpu(getattr(model, name)))


def _peak_bytes() -> int:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> int:
    """Do what the job says; the exit code is 0 when all of it succeeded."""
    _end_with_parent()
    job = json.loads(sys.argv[1])
    report = Path(job["report"])
    try:
        for step in job["steps"]:
            STEPS[step.pop("step")](**step)
    except Exception as error:  # the libraries raise what they like
        traceback.print_exc()
        text = str(error).strip().splitlines()
        report.write_text(json.dumps({"error": text[0] if text else type(error).__name__}))
        return 1
    report.write_text(json.dumps({"peak_bytes": _peak_bytes()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
