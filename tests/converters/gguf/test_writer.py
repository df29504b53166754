"""Long arrays are packed to the bytes that gguf's own writer packs."""

from __future__ import annotations

from typing import Any

import gguf
import pytest
from gguf.constants import GGUFValueType
from hypothesis import given
from hypothesis import strategies as st

from edgeadapt.converters.gguf.writer import Writer

ITEMS = st.one_of(
    st.lists(st.text(max_size=5), min_size=1, max_size=20),
    st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=20),
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20),
    st.lists(st.booleans(), min_size=1, max_size=20),
)


@given(ITEMS, st.sampled_from([1, 300]))
def test_bytes_are_ggufs(items: list[Any], times: int) -> None:
    values = items * times
    ours, theirs = (
        cls(None, "llama")._pack_val(values, GGUFValueType.ARRAY, True)
        for cls in (Writer, gguf.GGUFWriter)
    )
    assert ours == theirs


def test_mixed_arrays_are_still_refused() -> None:
    with pytest.raises(ValueError, match="same type"):
        Writer(None, "llama")._pack_val(["a", 1] * 300, GGUFValueType.ARRAY, True)
