"""A size as people write it."""

from __future__ import annotations

import re

from edgeadapt.errors import InputError

_UNITS = {
    "": 1, "B": 1,
    "K": 10**3, "KB": 10**3, "KIB": 2**10,
    "M": 10**6, "MB": 10**6, "MIB": 2**20,
    "G": 10**9, "GB": 10**9, "GIB": 2**30,
}  # fmt: skip


def parse_max_size(text: str) -> int:
    """Bytes of `80MiB`, `1.5GiB` (powers of 1024), or `500M`, `2GB` (powers of ten).

    Raises:
        InputError: it has another form.
    """
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([A-Za-z]{0,3})", text.strip())
    unit = _UNITS.get(match[2].upper()) if match else None
    size = int(float(match[1]) * unit) if match and unit else 0
    if size <= 0:
        raise InputError(f"{text!r} is not a size; expected a number with a unit, such as 80MiB")
    return size
