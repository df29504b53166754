"""Two questions to a model in a process of its own: how likely is this text, and what do you say?

`score` and `sample` are called by the pipeline; `run_score` and `run_sample` are what the child
process runs (see `edgeadapt.worker`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeadapt.artifact import open_artifact
from edgeadapt.beginnings import common_beginning
from edgeadapt.chat_template import Message
from edgeadapt.cpu import usable_cpus
from edgeadapt.errors import InputError
from edgeadapt.prefix import is_prefix, read_prefix, runtimes_beside
from edgeadapt.runtimes.base import Float32Array, Session, SessionSettings
from edgeadapt.runtimes.registry import get_runtime, installed_runtimes, keeping_state
from edgeadapt.worker import Progress, run_job

_ROWS = 64
"""Rows of logits turned into float64 at once."""


@dataclass(frozen=True)
class Scored:
    """One sequence for `score`: its token ids, and which of them count."""

    ids: Sequence[int]
    counts: Sequence[bool]
    """As long as `ids`; the first token is predicted from nothing and never counts."""


@dataclass(frozen=True)
class Text:
    """One sequence for `score` as text: only the tokens of the completion count."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Score:
    """Negative log likelihoods, in nats."""

    nll: tuple[float, ...]
    """Summed over the tokens that count, for each sequence."""
    tokens: tuple[int, ...]
    """How many tokens counted, for each sequence."""

    @property
    def perplexity(self) -> float:
        """exp(total nll / total tokens); NaN when no token counted."""
        count = sum(self.tokens)
        return math.exp(sum(self.nll) / count) if count else math.nan


@dataclass(frozen=True)
class Answer:
    """What the model said, greedily."""

    text: str
    tokens: int
    finished: bool
    """It ended by itself, with a stop token, before the limit."""


def available_threads() -> int:
    """Physical cores that this process may use: the default number of threads everywhere."""
    import psutil

    physical = psutil.cpu_count(logical=False)
    return max(1, min(n for n in (usable_cpus(), physical) if n))


def score(
    path: Path,
    sequences: Sequence[Scored | Text],
    *,
    adapter: Path | None = None,
    runtime: str | None = None,
    threads: int | None = None,
    context: int | None = None,
    exact: bool = False,
    keep_beginnings: bool = False,
    timeout_s: float | None = None,
    on_progress: Progress | None = None,
) -> Score:
    """Negative log likelihood of sequences under an artifact, on its runtime, in a child process.

    Args:
        path: the artifact.
        sequences: token ids with a mask, or prompt and completion as text.
        adapter: what to run on top: a PEFT folder with torch, else a file of the runtime's kind.
        runtime: its name; by default the preferred installed one for the artifact's format.
        threads: by default `available_threads()`.
        context: KV cache size in tokens; by default what the longest sequence needs.
        exact: see `SessionSettings.exact`.
        keep_beginnings: where a sequence begins as the one before it, compute that part once, if
            the engine can. Its rounding then depends on the order: under 1% of a sequence's
            likelihood for a small model in Q8_0 at llama.cpp's defaults, nothing with `exact`.
        timeout_s: give up after so many seconds.
        on_progress: called with 1.0 after each sequence.

    Raises:
        InputError: a mask does not fit its ids, or the artifact cannot be opened.
        RuntimeFailure: the child died, timed out or failed.
    """
    for number, sequence in enumerate(sequences):
        if isinstance(sequence, Scored) and len(sequence.ids) != len(sequence.counts):
            raise InputError(
                f"sequence {number} has {len(sequence.ids)} ids and {len(sequence.counts)} flags; "
                "give one flag for each id"
            )
    payload = artifact_payload(path, adapter, runtime, threads, context) | {
        "exact": exact,
        "keep_beginnings": keep_beginnings,
        "sequences": [_as_json(sequence) for sequence in sequences],
    }
    result = run_job("score", payload, timeout_s=timeout_s, on_progress=on_progress)
    return Score(tuple(result["nll"]), tuple(result["tokens"]))


def sample(
    path: Path,
    conversations: Sequence[Sequence[Message]],
    *,
    max_tokens: int = 128,
    adapter: Path | None = None,
    runtime: str | None = None,
    threads: int | None = None,
    context: int | None = None,
    timeout_s: float | None = None,
    on_progress: Progress | None = None,
) -> list[Answer]:
    """Greedy answers to conversations under the shipped chat template, in a child process.

    Args:
        path: the artifact.
        conversations: each a list of messages that ends with the user's.
        max_tokens: most tokens in an answer.
        adapter: what to run on top: a PEFT folder with torch, else a file of the runtime's kind.
        runtime: its name; by default the preferred installed one for the artifact's format.
        threads: by default `available_threads()`.
        context: KV cache size in tokens, 2048 by default.
        timeout_s: give up after so many seconds.
        on_progress: called with 1.0 after each answer.

    Raises:
        InputError: the artifact cannot be opened, has no chat template, or a prompt is too long.
        RuntimeFailure: the child died, timed out or failed.
    """
    payload = artifact_payload(path, adapter, runtime, threads, context) | {
        "max_tokens": max_tokens,
        "conversations": [list(messages) for messages in conversations],
    }
    result = run_job("sample", payload, timeout_s=timeout_s, on_progress=on_progress)
    return [Answer(**answer) for answer in result["answers"]]


def artifact_payload(
    path: Path,
    adapter: Path | None = None,
    runtime: str | None = None,
    threads: int | None = None,
    context: int | None = None,
    *,
    keeping: bool = False,
) -> dict[str, Any]:
    """What a job needs to `open_session`; what is not given takes its default.

    With `keeping`, the runtime is one whose sessions can begin from a saved state.
    """
    artifact = open_artifact(path)
    names = (runtime,) if runtime else installed_runtimes(artifact.format)
    if keeping:
        names = keeping_state(names)
    return {
        "artifact": str(path),
        "adapter": None if adapter is None else str(adapter),
        "runtime": runtimes_beside(names, adapter)[0],
        "threads": threads or available_threads(),
        "context": context,
    }


def _as_json(sequence: Scored | Text) -> dict[str, Any]:
    if isinstance(sequence, Text):
        return {"prompt": sequence.prompt, "completion": sequence.completion}
    return {"ids": [int(i) for i in sequence.ids], "counts": [bool(c) for c in sequence.counts]}


def open_session(payload: dict[str, Any], *, context: int) -> Session:
    """Load what a job's payload names (in the child).

    The positions of a prefix come on top of the context.
    """
    artifact, adapter = open_artifact(Path(payload["artifact"])), payload.get("adapter")
    if adapter and is_prefix(Path(adapter)):
        prefix = read_prefix(Path(adapter))
        prefix.check_artifact(artifact.lineage)
        context += prefix.tokens
    settings = SessionSettings(
        threads=payload["threads"],
        context=context,
        exact=payload.get("exact", False),
        provider=payload.get("provider") or "cpu",
        gpu_layers=payload.get("gpu_layers"),
    )
    runtime = get_runtime(payload["runtime"])
    runtime.check_provider(settings.provider)
    if adapter and hasattr(runtime, "adapter"):  # torch runs PEFT's folders as they are
        runtime.adapter, adapter = Path(adapter), None
    session = runtime.load(artifact, settings)
    if adapter:
        try:
            session.use_adapter(Path(adapter))
        except BaseException:
            session.close()
            raise
    return session


def open_here(
    path: Path,
    *,
    context: int,
    adapter: Path | None = None,
    runtime: str | None = None,
    threads: int | None = None,
    provider: str | None = None,
    keeping: bool = False,
) -> Session:
    """Load an artifact in this process, for talking to it; the caller closes it.

    Arguments are as of `artifact_payload`.

    Raises:
        EdgeAdaptError: as `open_artifact`, `installed_runtimes` and `Runtime.load`.
    """
    payload = artifact_payload(path, adapter, runtime, threads, keeping=keeping)
    payload["provider"] = provider
    return open_session(payload, context=context)


def run_score(payload: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """The `score` job, in the child."""
    sequences = payload["sequences"]
    longest = max((_most_tokens(sequence) for sequence in sequences), default=1)
    session = open_session(payload, context=payload["context"] or max(longest, 64))
    nll, tokens = [], []
    before: Sequence[int] = ()
    try:
        for sequence in sequences:
            ids, counts = _tokens(session, sequence)
            value, count = sequence_nll(session, ids, counts, before=before)
            if payload.get("keep_beginnings"):
                before = ids[:-1] if count else ()
            nll.append(value)
            tokens.append(count)
            progress(1.0)
    finally:
        session.close()
    return {"nll": nll, "tokens": tokens}


def _most_tokens(sequence: dict[str, Any]) -> int:
    """Upper bound: a token stands for at least one byte, give or take a prefix."""
    if "ids" in sequence:
        return len(sequence["ids"])
    return len(sequence["prompt"].encode()) + len(sequence["completion"].encode()) + 8


def _tokens(session: Session, sequence: dict[str, Any]) -> tuple[list[int], list[bool]]:
    if "ids" in sequence:
        return sequence["ids"], sequence["counts"]
    prompt = session.encode(sequence["prompt"])
    completion = session.encode(sequence["completion"])
    return prompt + completion, [False] * len(prompt) + [True] * len(completion)


def sequence_nll(
    session: Session, ids: Sequence[int], counts: Sequence[bool], *, before: Sequence[int] = ()
) -> tuple[float, int]:
    """Summed negative log likelihood (nats) of the tokens that count, and their number.

    Args:
        session: the model.
        ids: the sequence.
        counts: which of its tokens count.
        before: what the session ran last, if what both begin with need not be run again.
    """
    targets = np.flatnonzero(np.asarray(counts[1:], bool)) + 1
    if not len(targets):
        return 0.0, 0
    positions = (targets - 1).tolist()
    kept = min(len(common_beginning([before, ids])), positions[0])
    logits = session.logits_at(ids[:-1], positions, **({"kept": kept} if kept else {}))
    total = 0.0
    wanted = np.asarray(ids)[targets]
    for start in range(0, len(targets), _ROWS):
        part = slice(start, start + _ROWS)
        total += float(_nll(logits[part], wanted[part]).sum())
    return total, len(targets)


def _nll(logits: Float32Array, wanted: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """-log softmax(logits)[wanted] for each row, in float64."""
    rows = logits.astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    norm: npt.NDArray[np.float64] = np.log(np.exp(rows).sum(axis=1))
    chosen: npt.NDArray[np.float64] = rows[np.arange(len(wanted)), wanted]
    return norm - chosen


def run_sample(payload: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """The `sample` job, in the child."""
    session = open_session(payload, context=payload["context"] or 2048)
    answers = []
    try:
        for messages in payload["conversations"]:
            session.reset()
            ids = session.encode(session.render(messages))
            limit = min(payload["max_tokens"], session.capacity - session.start - len(ids))
            tokens = list(session.generate(ids, max_tokens=limit))
            text = b"".join(session.token_bytes(t) for t in tokens).decode("utf-8", "replace")
            answers.append(
                {"text": text.strip(), "tokens": len(tokens), "finished": len(tokens) < limit}
            )
            progress(1.0)
    finally:
        session.close()
    return {"answers": answers}
