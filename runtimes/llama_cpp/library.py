"""The llama.cpp library itself: loaded once, its log in our log, what it was built with."""

from __future__ import annotations

import ctypes
import functools
import logging
import re
from typing import Any

from edgeadapt.console import log
from edgeadapt.errors import RuntimeFailure
from edgeadapt.extras import need

_ERROR, _CONTINUED = 4, 5
"""From `enum ggml_log_level` in ggml.h."""

_FUNCTION_NAMES = re.compile(r"^(?:\w+: |error loading model: )*")

_OFFLOADED = re.compile(r"offloaded (\d+)/\d+ layers to GPU")
_GPU, _INTEGRATED_GPU = 1, 2
"""From `enum ggml_backend_dev_type` in ggml-backend.h."""

_errors: list[str] = []
_offloaded: list[int] = []


@functools.cache
def library() -> Any:
    """The `llama_cpp` module (its low-level functions carry the names of llama.h).

    Raises:
        MissingExtraError: it is not installed.
        RuntimeFailure: it is installed, but the shared library does not load here.
    """
    try:
        module = need("llama_cpp", "running a GGUF file")
    except (OSError, RuntimeError) as error:  # what llama_cpp raises when dlopen refuses
        raise RuntimeFailure(
            f"the installed llama.cpp library does not load on this machine ({error}); "
            "type: edgeadapt setup llama-cpp"
        ) from error
    _listen(module)
    module.llama_backend_init()
    return module


def _listen(module: Any) -> None:
    module.llama_log_set(_callback(module), ctypes.c_void_p(0))


@functools.cache
def _callback(module: Any) -> Any:
    """The log function given to llama.cpp; cached, because C keeps only a bare pointer to it."""
    lines = _LineJoiner()

    def receive(level: int, text: bytes, _: Any) -> None:
        lines.add(level, text.decode("utf-8", "replace"))

    return module.llama_log_callback(receive)


class _LineJoiner:
    """llama.cpp logs in pieces of lines; gathers them and keeps the errors."""

    def __init__(self) -> None:
        self._level = 0
        self._text = ""

    def add(self, level: int, text: str) -> None:
        if level != _CONTINUED:
            self._flush()
            self._level = level
        self._text += text
        if self._text.endswith("\n"):
            self._flush()

    def _flush(self) -> None:
        line, self._text = self._text.strip(), ""
        if not line:
            return
        if self._level == _ERROR:
            _errors.append(line)
        if found := _OFFLOADED.search(line):
            _offloaded.append(int(found[1]))
        if log.isEnabledFor(logging.DEBUG):
            log.debug("llama.cpp: %s", line)


def clear_errors() -> None:
    """Forget what llama.cpp complained of so far, and what it offloaded, and listen from here on.

    There is one log function for the whole process: another user of llama_cpp may have set its own.
    """
    _errors.clear()
    _offloaded.clear()
    _listen(library())


def complaint() -> str:
    """The most telling error line since `clear_errors`, without the C functions' names."""
    causes = [line for line in _errors if "failed to load model" not in line]
    telling = [line for line in causes if "error loading model" in line]
    line = (telling or causes or _errors or ["no reason given"])[0]
    return _FUNCTION_NAMES.sub("", line)


def offloaded_layers() -> int:
    """Layers that the model loaded since `clear_errors` has on a GPU, by llama.cpp's own log.

    It says nothing of it in a build without GPUs, and never through a function.
    """
    return _offloaded[-1] if _offloaded and gpus() else 0


def gpus() -> tuple[str, ...]:
    """Name and description of each GPU that the library sees, in its order."""
    from llama_cpp import _ggml

    lib = _ggml.libggml
    lib.ggml_backend_dev_count.restype = ctypes.c_size_t
    lib.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    lib.ggml_backend_dev_get.restype = ctypes.c_void_p
    for name in ("type", "name", "description"):
        getattr(lib, f"ggml_backend_dev_{name}").argtypes = [ctypes.c_void_p]
    for name in ("name", "description"):
        getattr(lib, f"ggml_backend_dev_{name}").restype = ctypes.c_char_p
    devices = map(lib.ggml_backend_dev_get, range(lib.ggml_backend_dev_count()))
    return tuple(
        f"{lib.ggml_backend_dev_name(d).decode()}: {lib.ggml_backend_dev_description(d).decode()}"
        for d in devices
        if lib.ggml_backend_dev_type(d) in (_GPU, _INTEGRATED_GPU)
    )


def parse_features(text: str) -> tuple[str, ...]:
    """Names that are switched on in the text of `llama_print_system_info`.

    The text reads `CPU : SSE3 = 1 | AVX2 = 1 | ... |`, one such list after another per backend.
    """
    names = []
    for part in text.split("|"):
        name, _, value = part.rpartition(":")[2].partition("=")
        if value.strip() not in ("", "0"):
            names.append(name.strip())
    return tuple(names)


def build_info() -> dict[str, str]:
    """Versions of the Python package and the library, and the features it was compiled with."""
    module = library()
    return {
        "llama-cpp-python": str(module.__version__),
        "llama.cpp": module.llama_version().decode(),
        "features": " ".join(parse_features(module.llama_print_system_info().decode())),
    }
