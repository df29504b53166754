"""What a base, an adapter or an artifact is, and what can carry it."""

from edgeadapt.inspect.report import inspect_path
from edgeadapt.inspect.text import render

__all__ = ["inspect_path", "render"]
