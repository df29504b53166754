"""Begin a loaded model after its warm prompt; refuse one that was computed for another model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgeadapt.artifact import open_artifact
from edgeadapt.console import log
from edgeadapt.errors import InputError, RuntimeFailure
from edgeadapt.runtimes.base import Session
from edgeadapt.warm.opening import starts_alike, tokens_alike
from edgeadapt.warm.prompt import (
    Beside,
    MadeFor,
    WarmPrompt,
    beside,
    made_for,
    read_warm,
    state_file,
)
from edgeadapt.warm.state import Key, MisfitError, keep, kept_file, read_state, used

Origin = Literal["shipped", "kept", "computed"]


@dataclass(frozen=True)
class WarmStart:
    """A session, and the state that it begins from."""

    session: Session
    prompt: WarmPrompt
    state: bytes
    origin: Origin
    """Where the state came from: the file beside the prompt, this machine's cache, or it was
    computed just now."""

    def begin(self) -> None:
        """Make the KV cache what it is after the prompt, whatever it was.

        Raises:
            RuntimeFailure: the engine does not take the state.
        """
        self.session.restore_state(self.state)


def start_after(
    session: Session, path: Path, artifact: Path, adapter: Path | None = None
) -> WarmStart:
    """Check a warm prompt against what is loaded, and begin after it.

    A state that was computed with another library, cache type or setting, or that is missing, is
    computed here and kept in the cache folder.

    Args:
        session: the artifact, loaded, with the adapter active.
        path: of the warm prompt.
        artifact: what was loaded.
        adapter: what is active beside it.

    Raises:
        InputError: it is for another artifact, adapter or chat template, or leaves no room.
        CorruptFileError: it is damaged.
    """
    prompt = read_warm(path)
    opened = open_artifact(artifact)
    why = _misfit(prompt, session, made_for(opened), beside(adapter))
    if why is not None:
        raise InputError(
            f"{path} is not for {artifact}: {why}; make one with: edgeadapt warm {artifact} "
            "--prompt FILE"
        )
    if len(prompt.ids) >= session.capacity - session.start:
        raise InputError(
            f"the warm prompt {path} takes {len(prompt.ids)} tokens of a context of "
            f"{session.capacity - session.start}; raise --context"
        )
    key = state_key(prompt, session)
    state, origin = _found(session, path, key) or (None, "computed")
    if state is None:
        log.info("Computing the state of %s: %d tokens.", path.name, len(prompt.ids))
        session.reset()
        session.forward(prompt.ids)
        state = session.save_state()
        keep(key, state)
    return WarmStart(session, prompt, state, origin)


def state_key(prompt: WarmPrompt, session: Session) -> Key:
    """What the state of a prompt depends on in this session."""
    return Key(
        artifact=prompt.artifact.sha256,
        adapter=_digest(prompt.adapter),
        ids=prompt.ids_sha256,
        settings=session.state_settings(),
    )


def _found(session: Session, path: Path, key: Key) -> tuple[bytes, Origin] | None:
    """A state that lies ready and that the engine takes."""
    places: tuple[tuple[Path, Origin], ...] = (
        (state_file(path), "shipped"), (kept_file(key), "kept"),
    )  # fmt: skip
    for place, origin in places:
        if not place.is_file():
            continue
        try:
            state = read_state(place, key)
            session.restore_state(state)
        except MisfitError as error:
            log.info("%s.", error)
        except RuntimeFailure as error:  # as where flash attention is chosen otherwise here
            log.info("%s does not fit here: %s.", place, error)
        else:
            used(kept_file(key))
            return state, origin
    return None


def _misfit(
    prompt: WarmPrompt, session: Session, found: MadeFor, active: Beside | None
) -> str | None:
    """Why it is not for what is loaded, if so."""
    why = _other_adapter(prompt.adapter, active)
    if found.sha256 != prompt.artifact.sha256:
        why = _other_artifact(prompt, found)
        if why is None and not starts_alike(prompt.messages, prompt.opening, session.render):
            why = "its chat template writes the prompt otherwise"
        if why is None:
            why = "its weights or tokenizer are not those that the prompt was run through"
    elif why is None and not tokens_alike(
        prompt.messages, prompt.opening, session.render, session.encode
    ):
        why = "its messages are not those that its tokens were made of: it was edited"
    return why


def _digest(adapter: Beside | None) -> str | None:
    return None if adapter is None else adapter.sha256


def _other_adapter(made: Beside | None, active: Beside | None) -> str | None:
    if _digest(made) == _digest(active):
        return None
    if made is None:
        assert active is not None
        return f"it was computed without an adapter, and {active.name} is active"
    if active is None:
        return f"it was computed with the adapter {made.name}, and none is active"
    return f"it was computed with another adapter, {made.name}, than {active.name}"


def _other_artifact(prompt: WarmPrompt, found: MadeFor) -> str | None:
    made = prompt.artifact
    if made.base != found.base:
        return (
            f"it was computed for the base with sha256 {_short(made.base)}, and this one was made "
            f"from {_short(found.base)}"
        )
    if made.adapters != found.adapters:
        before, here = (", ".join(map(_short, it.adapters)) or "none" for it in (made, found))
        return f"it was computed with the adapters {before} merged in, and here are {here}"
    if (made.format, made.quantization) != (found.format, found.quantization):
        return (
            f"it was computed for {made.format} {made.quantization}, and this one is "
            f"{found.format} {found.quantization}"
        )
    return None


def _short(digest: str | None) -> str:
    return "unknown" if digest is None else f"{digest[:12]}..."
