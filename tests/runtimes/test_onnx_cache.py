"""What a cache was dumped as, another one begins with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeadapt.errors import RuntimeFailure
from edgeadapt.runtimes.onnx_cache import AlternatingCache, CacheShape, KvCache, SharedCache

ort = pytest.importorskip("onnxruntime")

NAMES = {"past.0.key": "present.0.key", "past.0.value": "present.0.value"}
SHAPE = CacheShape(heads=2, size=4, context=6)
MAKE: dict[str, Callable[[type[np.floating]], KvCache]] = {
    "alternating": lambda dtype: AlternatingCache(NAMES, SHAPE, dtype),
    "shared": lambda dtype: SharedCache(ort, NAMES, SHAPE, dtype),
}
dtypes = st.sampled_from([np.float32, np.float16])


@pytest.mark.parametrize("kind", MAKE)
@given(tokens=st.integers(0, 6), dtype=dtypes, seed=st.integers(0, 9))
def test_dumped_and_restored(kind: str, tokens: int, dtype: type[np.floating], seed: int) -> None:
    random = np.random.default_rng(seed)
    given_ = {name: random.normal(size=SHAPE.of(tokens)).astype(dtype) for name in NAMES}
    one, other = MAKE[kind](dtype), MAKE[kind](dtype)
    one.fill(given_)
    other.fill({name: np.ones(SHAPE.of(6), dtype) for name in NAMES})  # of an earlier sequence
    data = one.dump(tokens)
    assert data == b"".join(array.tobytes() for array in given_.values())
    assert other.restore(data) == tokens
    for expected, found in zip(given_.values(), other.past(tokens), strict=True):
        assert np.array_equal(expected, found)


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("size", [1, 127, 129, 7 * 128])
def test_bytes_of_another_cache_are_refused(kind: str, size: int) -> None:
    cache = MAKE[kind](np.float32)  # 2 tensors of 2 heads of 4 floats: 64 bytes a position
    assert cache.restore(bytes(128)) == 2
    with pytest.raises(RuntimeFailure, match="64 bytes a position"):
        cache.restore(bytes(size))
