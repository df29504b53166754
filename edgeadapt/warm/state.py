"""The KV cache after a warm prompt, as a file: a cache, good for one model, engine and setting.

One line of JSON that says what it was computed for and the hash of the rest; then the bytes that
the engine gave. Whatever differs, the state is computed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from edgeadapt.console import log
from edgeadapt.errors import InputError
from edgeadapt.files import atomic_file, cache_dir, sha256_json

_LONGEST_HEADER = 1 << 16
_MOST_KEPT = 8


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Key(_Model):
    """All that a state depends on."""

    artifact: str
    """SHA-256, as the following two."""
    adapter: str | None
    ids: str
    settings: dict[str, str]
    """See `Session.state_settings`."""


class _Header(_Model):
    kind: Literal["edgeadapt-warm-state"] = "edgeadapt-warm-state"
    schema_version: Literal[1] = 1
    key: Key
    sha256: str
    """Of what follows."""


class MisfitError(InputError):
    """A state is not the one that is asked for, or damaged."""


def write_state(path: Path, key: Key, state: bytes) -> None:
    """Write a state to a path that is temporary still."""
    header = _Header(key=key, sha256=hashlib.sha256(state).hexdigest())
    with path.open("wb") as file:
        file.write(json.dumps(header.model_dump(mode="json")).encode() + b"\n")
        file.write(state)


def read_state(path: Path, key: Key) -> bytes:
    """The state in a file, if it was computed for `key` and is whole.

    Raises:
        MisfitError: it is not; one sentence says what differs.
        InputError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            line = file.readline(_LONGEST_HEADER)
            header = _parse(path, line)
            if header.key != key:
                raise MisfitError(f"{path} was computed {_difference(header.key, key)}")
            state = file.read()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    if hashlib.sha256(state).hexdigest() != header.sha256:
        raise MisfitError(f"{path} is damaged: its content is not what was written")
    return state


def _parse(path: Path, line: bytes) -> _Header:
    try:
        return _Header.model_validate(json.loads(line))
    except (ValueError, ValidationError, RecursionError) as error:
        raise MisfitError(f"{path} is no state of this edgeadapt") from error


def _difference(found: Key, wanted: Key) -> str:
    for name in ("artifact", "adapter", "ids"):
        if getattr(found, name) != getattr(wanted, name):
            return f"for another {'prompt' if name == 'ids' else name}"
    names = sorted(found.settings.keys() | wanted.settings.keys())
    differing = [n for n in names if found.settings.get(n) != wanted.settings.get(n)]
    return "with " + ", ".join(
        f"{name} {found.settings.get(name)} (here {wanted.settings.get(name)})"
        for name in differing
    )


def kept_file(key: Key) -> Path:
    """Where a state that was computed on this machine is kept."""
    return cache_dir() / "warm" / f"{sha256_json(key.model_dump(mode='json'))[:32]}.state"


def keep(key: Key, state: bytes) -> None:
    """Keep a state for the next start, and drop those that were not used for longest."""
    final = kept_file(key)
    try:
        with atomic_file(final, overwrite=True) as partial:
            write_state(partial, key, state)
        kept = sorted(final.parent.glob("*.state"), key=lambda path: path.stat().st_mtime)
        for path in kept[:-_MOST_KEPT]:
            path.unlink(missing_ok=True)
    except (OSError, InputError) as error:  # a device may have nowhere to write
        log.info("The state is not kept for the next start: %s", error)


def used(path: Path) -> None:
    """Note that a kept state is still wanted."""
    with contextlib.suppress(OSError):
        os.utime(path)
