"""One module per model family; each holds only what differs from the plain decoder."""

from edgeadapt.converters.gguf.architectures.registry import family_of

__all__ = ["family_of"]
