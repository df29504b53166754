"""Run a warm prompt through an artifact, in a process of its own, and write what is kept of it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeadapt import __version__
from edgeadapt.artifact import Artifact, open_artifact
from edgeadapt.chat_template import Message
from edgeadapt.console import log
from edgeadapt.errors import InputError, UnsupportedError
from edgeadapt.files import atomic_files
from edgeadapt.jobs import artifact_payload, open_session
from edgeadapt.runtimes.registry import get_runtime
from edgeadapt.warm.opening import Opening, common_opening
from edgeadapt.warm.prompt import (
    SUFFIX,
    WarmPrompt,
    beside,
    made_for,
    read_messages,
    state_file,
    warm_files,
    warm_text,
)
from edgeadapt.warm.start import state_key
from edgeadapt.warm.state import write_state
from edgeadapt.worker import Progress, run_job

_ROOM = 64
"""Positions beyond the prompt while it is run."""

Check = Callable[[Artifact], None]


@dataclass(frozen=True)
class Warmed:
    """What was written."""

    path: Path
    state: Path
    prompt: WarmPrompt
    state_bytes: int

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "path": str(self.path),
            "state": str(self.state),
            "tokens": len(self.prompt.ids),
            "state_bytes": self.state_bytes,
        }


@dataclass
class Warming:
    """A `check` for `export`, after another one: runs the prompt through what was made."""

    messages: tuple[Message, ...]
    out: tuple[Path, Path]
    partials: tuple[Path, Path]
    adapter: Path | None = None
    runtime: str | None = None
    threads: int | None = None
    first: Check | None = None
    """Has to be content before anything is run."""
    done: Warmed | None = field(default=None, init=False)

    def __call__(self, artifact: Artifact) -> None:
        """Write both files of the warm prompt to their temporary places."""
        if self.first is not None:
            self.first(artifact)
        prompt = _run(artifact, self)
        self.partials[0].write_text(warm_text(prompt), encoding="utf-8")
        size = self.partials[1].stat().st_size
        self.done = Warmed(*self.out, prompt, size)


@contextlib.contextmanager
def warming(
    prompt: Path,
    out: tuple[Path, Path],
    *,
    adapter: Path | None = None,
    runtime: str | None = None,
    threads: int | None = None,
    first: Check | None = None,
) -> Iterator[Warming]:
    """Give what is to be called with the artifact; at the end both files get their names.

    Args:
        prompt: a text file, or a .json file with a list of messages.
        out: the files to make.
        adapter: what is active beside the artifact.
        runtime: by default the preferred installed one that keeps states.
        threads: by default the physical cores that this process may use.
        first: called with the artifact before.

    Raises:
        InputError: the prompt cannot be read, or one of the files exists.
    """
    messages = read_messages(prompt)
    with atomic_files(out) as partials:
        yield Warming(messages, out, (partials[0], partials[1]), adapter, runtime, threads, first)


def make_warm(
    artifact: Path,
    prompt: Path,
    out: Path | None = None,
    *,
    adapter: Path | None = None,
    runtime: str | None = None,
    threads: int | None = None,
) -> Warmed:
    """Compute the state after a prompt for an artifact that is there.

    Args:
        artifact: a GGUF file or an ONNX folder.
        prompt: a text file, or a .json file with a list of messages.
        out: the .warm.json file to make; by default beside the artifact, with its name.
        adapter: what is active beside the artifact.
        runtime: by default the preferred installed one that keeps states.
        threads: by default the physical cores that this process may use.

    Raises:
        InputError: something is missing, or `out` exists or is called otherwise.
        UnsupportedError: the chat template does not keep the prompt at the beginning, or the
            runtime keeps no state.
        RuntimeFailure: the engine failed.
    """
    if out is not None and not out.name.endswith(SUFFIX):
        raise InputError(f"a warm prompt is written as {SUFFIX}; end --out with it")
    files = warm_files(artifact) if out is None else (out, state_file(out))
    opened = open_artifact(artifact)
    with warming(prompt, files, adapter=adapter, runtime=runtime, threads=threads) as made:
        made(opened)
    assert made.done is not None
    return made.done


def check_before(prompt: Path, out: Path) -> None:
    """See, before minutes of work, that a prompt can be read and its files be written beside `out`.

    Raises:
        InputError: they cannot.
    """
    read_messages(prompt)
    for path in warm_files(out):
        if path.exists():
            raise InputError(f"{path} exists already; choose another --out, or remove it first")


def _run(artifact: Artifact, asked: Warming) -> WarmPrompt:
    payload = artifact_payload(
        artifact.path, asked.adapter, asked.runtime, asked.threads, keeping=True
    )
    found, active = made_for(artifact), beside(asked.adapter)
    log.info("Running the warm prompt through %s ...", artifact.path.name)
    made = run_job(
        "warm",
        payload
        | {
            "messages": list(asked.messages),
            "made_for": found.model_dump(mode="json"),
            "beside": active and active.model_dump(mode="json"),
            "state": str(asked.partials[1]),
        },
    )
    return WarmPrompt.model_validate(made["prompt"])


def run_warm(payload: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """The `warm` job, in the child."""
    messages = payload["messages"]
    opening = _opening(payload)
    prompt = WarmPrompt.model_validate(
        {
            "edgeadapt": __version__,
            "artifact": payload["made_for"],
            "adapter": payload["beside"],
            "messages": messages,
            "text": opening.text,
            "ids": opening.ids,
        }
    )
    session = open_session(payload, context=len(opening.ids) + _ROOM)
    try:
        session.forward(opening.ids)
        write_state(Path(payload["state"]), state_key(prompt, session), session.save_state())
    finally:
        session.close()
    return {"prompt": prompt.model_dump(mode="json")}


def _opening(payload: dict[str, Any]) -> Opening:
    runtime = get_runtime(payload["runtime"])
    text = runtime.open_text(open_artifact(Path(payload["artifact"])))
    if text is None:
        raise UnsupportedError(f"{runtime.name} does not tell how it tokenizes")
    try:
        encode = functools.partial(text.encode, add_special=False)
        return common_opening(payload["messages"], text.render, encode)
    finally:
        text.close()
