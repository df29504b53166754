"""Things that go by a name: those built in, and those that other packages add as entry points."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from edgeadapt.errors import InputError


@dataclass(frozen=True)
class Registry:
    """One kind of thing; a module is imported when something in it is asked for."""

    kind: str
    """What to call one of them in a message: `runtime`, `format`."""
    group: str
    """Entry-point group in which other packages add theirs; they cannot replace a built-in one."""
    built_in: Mapping[str, str]
    """Name -> `module:attribute`."""

    def names(self) -> tuple[str, ...]:
        """Every known name, built-in ones first."""
        return (*self.built_in, *self.added())

    def added(self) -> tuple[str, ...]:
        """Names that other packages brought."""
        return tuple(entry_points(group=self.group).names - self.built_in.keys())

    def load(self, name: str) -> Any:
        """What goes by `name`.

        Raises:
            InputError: nothing does.
        """
        if name in self.built_in:
            module, _, attribute = self.built_in[name].partition(":")
            return getattr(importlib.import_module(module), attribute)
        for entry in entry_points(group=self.group, name=name):
            try:
                return entry.load()
            except Exception as error:  # the code is another package's
                raise InputError(
                    f"the {self.kind} {name!r} cannot be loaded: {type(error).__name__}: {error}"
                ) from error
        raise InputError(
            f"there is no {self.kind} {name!r}; choose one of {', '.join(self.names())}"
        )
