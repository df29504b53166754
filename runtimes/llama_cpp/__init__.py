"""llama.cpp, through the shared library that llama-cpp-python installs."""

from edgeadapt.runtimes.llama_cpp.runtime import LlamaCppRuntime

__all__ = ["LlamaCppRuntime"]
