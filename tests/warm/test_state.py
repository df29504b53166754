"""A state is given back for what it was computed for, and for nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeadapt.warm.state import (
    Key,
    MisfitError,
    keep,
    kept_file,
    read_state,
    write_state,
)

KEY = Key(
    artifact="a" * 64, adapter="b" * 64, ids="c" * 64, settings={"lib": "1", "kv_cache": "f16"}
)
OTHERS = {
    "for another artifact": {"artifact": "0" * 64},
    "for another adapter": {"adapter": None},
    "for another prompt": {"ids": "0" * 64},
    r"with lib 1 \(here 2\)": {"settings": {"lib": "2", "kv_cache": "f16"}},
    r"with kv_cache f16 \(here f32\), lib 1 \(here None\)": {"settings": {"kv_cache": "f32"}},
}


@given(state=st.binary(max_size=200))
def test_what_was_written_is_read(tmp_path_factory: pytest.TempPathFactory, state: bytes) -> None:
    path = tmp_path_factory.mktemp("state") / "s"
    write_state(path, KEY, state)
    assert read_state(path, KEY) == state


@pytest.mark.parametrize("says", OTHERS)
def test_what_differs_is_told(tmp_path: Path, says: str) -> None:
    path = tmp_path / "s"
    write_state(path, KEY, b"state")
    with pytest.raises(MisfitError, match=says):
        read_state(path, KEY.model_copy(update=OTHERS[says]))


def test_each_changed_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "s"
    write_state(path, KEY, b"state\nof two lines")
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(MisfitError):
            read_state(path, KEY)
    for short in range(len(whole)):
        path.write_bytes(whole[:short])
        with pytest.raises(MisfitError):
            read_state(path, KEY)


def test_those_used_last_are_kept(tmp_path: Path) -> None:
    keys = [KEY.model_copy(update={"ids": f"{number:064}"}) for number in range(10)]
    for age, key in enumerate(keys):
        keep(key, b"state")
        os.utime(kept_file(key), (age, age))
    os.utime(kept_file(keys[2]), (100, 100))
    keep(KEY, b"more")
    assert read_state(kept_file(KEY), KEY) == b"more"
    assert [kept_file(key).is_file() for key in keys] == [
        False, False, True, False, *[True] * 6
    ]  # fmt: skip


def test_where_nothing_can_be_written_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEADAPT_CACHE", str(tmp_path / "file"))
    keep(KEY, b"state")
    assert not kept_file(KEY).is_file()
