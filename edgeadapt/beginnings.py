"""What sequences begin with alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

_Item = TypeVar("_Item")


def common_beginning(sequences: Sequence[Sequence[_Item]]) -> list[_Item]:
    """The longest beginning that all have."""
    common = []
    for items in zip(*sequences, strict=False):
        if any(item != items[0] for item in items):
            break
        common.append(items[0])
    return common
