"""Inputs that are changed while they are used."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def touching(path: Path, real: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The same function, which first makes a file look as if it were written anew."""

    def call(*arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
        os.utime(path, (1, 1))
        return real(*arguments, **options)

    return call
