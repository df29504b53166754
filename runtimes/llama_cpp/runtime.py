"""The llama.cpp engine: GGUF in, one sequence, the low-level C functions and nothing between."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar

from edgeadapt.artifact import Artifact
from edgeadapt.errors import CorruptFileError, InputError, MissingExtraError, RuntimeFailure
from edgeadapt.runtimes.base import Runtime, SessionSettings
from edgeadapt.runtimes.llama_cpp import library
from edgeadapt.runtimes.llama_cpp.session import LlamaCppSession
from edgeadapt.runtimes.llama_cpp.text import LlamaCppText

_GGML_TYPE_F32 = 0
_BATCH = 2048
"""Most tokens in one llama_decode; llama.cpp's own default."""
_MICRO_BATCH = 512
"""Most tokens computed at once; llama.cpp's own default."""


class LlamaCppRuntime(Runtime):
    """llama.cpp, weights memory-mapped; on the CPU unless layers are given to a GPU."""

    name: ClassVar[str] = "llama-cpp"
    formats: ClassVar[frozenset[str]] = frozenset({"gguf"})
    modules: ClassVar[tuple[str, ...]] = ("llama_cpp",)
    keeps_state = True

    def load(self, artifact: Artifact, settings: SessionSettings) -> LlamaCppSession:
        """Load a GGUF file.

        Raises:
            InputError: it is not a GGUF file.
            CorruptFileError: llama.cpp refuses the file.
            MissingExtraError: llama-cpp-python is not installed.
            RuntimeFailure: the library does not load, or has no room for the KV cache.
        """
        lib, model = _load_model(artifact, gpu_layers=settings.gpu_layers or 0)
        offloaded = library.offloaded_layers() if settings.gpu_layers else None
        context = lib.llama_init_from_model(model, _context_parameters(settings))
        if not context:
            lib.llama_model_free(model)
            raise RuntimeFailure(
                f"llama.cpp cannot make a context of {settings.context} tokens for "
                f"{artifact.path}: {library.complaint()}; try a smaller --context"
            )
        return LlamaCppSession(
            lib, model, context,
            capacity=settings.context, gpu_layers=offloaded, exact=settings.exact,
        )  # fmt: skip

    def open_text(self, artifact: Artifact) -> LlamaCppText:
        """llama.cpp's tokenizer; the weights stay unread."""
        lib, model = _load_model(artifact, vocab_only=True)
        return LlamaCppText(lib, model, owned=True)

    def version(self) -> str:
        """Version of llama-cpp-python."""
        try:
            return version("llama-cpp-python")
        except PackageNotFoundError as error:
            raise MissingExtraError("llama_cpp", "llama-cpp", "running a GGUF file") from error


def _load_model(
    artifact: Artifact, *, vocab_only: bool = False, gpu_layers: int = 0
) -> tuple[Any, Any]:
    """The library, and a model in it; `gpu_layers` below 0 are all."""
    if artifact.format not in LlamaCppRuntime.formats:
        raise InputError(
            f"{artifact.path} is {artifact.format}; the llama-cpp runtime loads GGUF files: "
            "export with --format gguf, or choose another --runtime"
        )
    lib = library.library()
    library.clear_errors()
    parameters = lib.llama_model_default_params()
    parameters.n_gpu_layers = gpu_layers
    parameters.vocab_only = vocab_only
    if lib.llama_supports_mmap():
        parameters.load_mode = lib.LLAMA_LOAD_MODE_MMAP
    model = lib.llama_model_load_from_file(str(artifact.path).encode(), parameters)
    if not model:
        raise CorruptFileError(
            f"llama.cpp cannot load {artifact.path}: {library.complaint()}; export it again"
        )
    return lib, model


def _context_parameters(settings: SessionSettings) -> object:
    lib = library.library()
    parameters = lib.llama_context_default_params()
    parameters.n_ctx = settings.context
    parameters.n_batch = min(settings.context, _BATCH)
    parameters.n_ubatch = min(settings.context, _MICRO_BATCH)
    parameters.n_threads = settings.threads
    parameters.n_threads_batch = settings.threads
    if settings.exact:
        parameters.type_k = _GGML_TYPE_F32
        parameters.type_v = _GGML_TYPE_F32
        parameters.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return parameters
