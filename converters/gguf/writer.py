"""gguf's writer, quicker with long arrays.

`gguf.GGUFWriter` packs a vocabulary one string at a time through a chain of calls, a sixth of the
time of a whole export. The bytes are the same.
"""

from __future__ import annotations

import struct
from typing import Any

import gguf
from gguf.constants import GGUFValueType

_LONG = 256
"""Elements from which on it matters."""

_NUMBERS = {GGUFValueType.INT32: "i", GGUFValueType.FLOAT32: "f"}


class Writer(gguf.GGUFWriter):  # type: ignore[misc]  # gguf has no types for mypy
    """See the module."""

    def _pack_val(
        self,
        val: Any,
        vtype: GGUFValueType,
        add_vtype: bool,
        sub_type: GGUFValueType | None = None,
    ) -> bytes:
        packed = _packed(val) if vtype == GGUFValueType.ARRAY and sub_type is None else None
        if packed is None:
            return bytes(super()._pack_val(val, vtype, add_vtype, sub_type))
        kind, body = packed
        head = struct.pack("<I", GGUFValueType.ARRAY) if add_vtype else b""
        return head + struct.pack("<IQ", kind, len(val)) + body


def _packed(values: Any) -> tuple[GGUFValueType, bytes] | None:
    """Type and bytes of the elements; None where gguf should see to it (or refuse)."""
    if not isinstance(values, list) or len(values) < _LONG or len(set(map(type, values))) > 1:
        return None
    kind = GGUFValueType.get_type(values[0])
    if kind in _NUMBERS:
        return kind, struct.pack(f"<{len(values)}{_NUMBERS[kind]}", *values)
    if kind == GGUFValueType.STRING:
        encoded = [text.encode() for text in values]
        lengths = struct.pack(f"<{len(encoded)}Q", *map(len, encoded))
        parts = [b""] * (2 * len(encoded))
        parts[::2] = [lengths[i : i + 8] for i in range(0, len(lengths), 8)]
        parts[1::2] = encoded
        return kind, b"".join(parts)
    return None
