from __future__ import annotations

import pytest

from edgeadapt.allocation.budget import parse_max_size
from edgeadapt.errors import InputError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("80MiB", 80 << 20), ("79.5 MiB", int(79.5 * 2**20)), ("1gib", 1 << 30),
        ("500M", 500 * 10**6), ("2GB", 2 * 10**9), ("12345", 12345),
        ("12345B", 12345), ("3KiB", 3072),
    ],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert parse_max_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "-1MiB", "0", "80 apples", "1e9", "80MiBs", "nan"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InputError, match="such as 80MiB"):
        parse_max_size(text)
