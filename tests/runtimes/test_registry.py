"""Names, formats and what is installed."""

from __future__ import annotations

import pytest

from edgeadapt.errors import InputError, MissingExtraError
from edgeadapt.runtimes import get_runtime, runtime_names, runtimes_for
from edgeadapt.runtimes.llama_cpp import LlamaCppRuntime
from edgeadapt.runtimes.registry import installed_runtimes, preferred_runtime


def test_every_built_in_engine_loads_the_formats_it_is_listed_for() -> None:
    for name in runtime_names():
        assert get_runtime(name).name == name
        for format in get_runtime(name).formats:
            assert name in runtimes_for(format)


def test_an_unknown_engine_or_format_is_refused() -> None:
    with pytest.raises(InputError, match="there is no runtime 'vulkan-magic'"):
        get_runtime("vulkan-magic")
    with pytest.raises(InputError, match="no runtime loads the format 'tflite'"):
        installed_runtimes("tflite")


def test_an_engine_that_is_not_installed_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llama_cpp")
    assert preferred_runtime("gguf") == "llama-cpp"

    def missing(self: LlamaCppRuntime) -> str:
        raise MissingExtraError("llama_cpp", "llama-cpp", "running a GGUF file")

    monkeypatch.setattr(LlamaCppRuntime, "version", missing)
    with pytest.raises(MissingExtraError, match=r"pip install 'edgeadapt\[llama-cpp\]'"):
        preferred_runtime("gguf")
