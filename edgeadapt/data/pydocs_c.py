"""Docstrings of the standard modules that are written in C, as JSON on stdout.

Run as a script in a bare interpreter by `pydocs`, so it may import the standard library only.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from collections.abc import Iterator

C_MODULES = (
    "array", "atexit", "binascii", "builtins", "cmath", "errno", "faulthandler", "fcntl", "gc",
    "grp", "itertools", "math", "mmap", "posix", "pwd", "resource", "select", "sys", "syslog",
    "termios", "time", "unicodedata", "zlib",
)  # fmt: skip
"""Public standard modules without Python source, and without effects when imported."""


_Entry = tuple[str, str, str]
"""Kind (`function` or `class`), dotted name, docstring."""


def entries(module: str) -> Iterator[_Entry]:
    """The documented public functions, classes and methods of a module."""
    try:
        contents = vars(importlib.import_module(module))
    except ImportError:  # fcntl and its like exist on some systems only
        return
    public = "os" if module == "posix" else module
    for name, value in sorted(contents.items()):
        if name.startswith("_"):
            continue
        docstring = inspect.getdoc(value)
        if isinstance(value, type) and value.__module__ == module and docstring:
            yield "class", f"{public}.{name}", docstring
            yield from _methods(value, f"{public}.{name}")
        elif inspect.isbuiltin(value) and docstring:
            yield "function", f"{public}.{name}", docstring


def _methods(owner: type, prefix: str) -> Iterator[_Entry]:
    for name, value in sorted(vars(owner).items()):
        if inspect.ismethoddescriptor(value) and not name.startswith("_") and value.__doc__:
            yield "function", f"{prefix}.{name}", value.__doc__


if __name__ == "__main__":
    json.dump([entry for module in C_MODULES for entry in entries(module)], sys.stdout)
