"""Golden vectors: what a model said on the runtime that measured it, to be compared elsewhere.

The comparison itself is in `edgeadapt.bundle.selftest`, which ships with every bundle and runs
without edgeadapt. docs/golden-vectors.md tells where the tolerances come from.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgeadapt.bundle import selftest
from edgeadapt.errors import CorruptFileError, EdgeAdaptError, InputError
from edgeadapt.files import cache_dir, read_json, sha256_json, write_json
from edgeadapt.jobs import artifact_payload, open_session
from edgeadapt.runtimes.base import Session
from edgeadapt.runtimes.registry import get_runtime
from edgeadapt.worker import Progress, run_job
from edgeadapt.yaml_model import first_problem

FILE = "golden.json"
SCHEMA_VERSION = 1
FIRST_TOKEN_TOLERANCE = 0.5
LATER_TOLERANCE = 1.0
TOP = 10
STEPS = 16
"""Greedy tokens that are recorded after each prompt."""
MOST_PROMPTS = 4
DEFAULT_PROMPTS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "How many days has a week?",
)
_LONGEST = 512
"""Tokens of a prompt that is recorded; longer ones are left out."""
_CONTEXT = _LONGEST + 64
_DIGITS = 5
"""Decimals that are kept, far below any tolerance."""


def record(path: Path, sha256: str, runtime: str, prompts: Sequence[str]) -> dict[str, Any]:
    """What an artifact says to some prompts on a runtime; remembered in the cache.

    Args:
        path: the artifact.
        sha256: its hash.
        runtime: name of an installed one.
        prompts: questions; they are put into the chat template that ships with the artifact.

    Returns:
        `version` of the runtime, and `cases` as `selftest.compare` takes them.

    Raises:
        RuntimeFailure: the child process died or failed.
    """
    version = get_runtime(runtime).version()
    payload = artifact_payload(path, runtime=runtime) | {"prompts": list(prompts)}
    key = [sha256, runtime, version, list(prompts), payload["threads"], STEPS, TOP, SCHEMA_VERSION]
    memo = cache_dir() / "golden" / f"{sha256_json(key)[:32]}.json"
    try:
        known = read_json(memo)
        if isinstance(known, dict) and known.keys() == {"version", "cases"}:
            return known
    except EdgeAdaptError:  # not recorded yet, or not whole
        pass
    cases = run_job("golden-record", payload)["cases"]
    found = {"version": version, "cases": cases}
    write_json(memo, found)
    return found


def document_bytes(variants: dict[str, Any]) -> bytes:
    """golden.json, from `path`, `format` and recordings by runtime of each variant."""
    value = {
        "schema_version": SCHEMA_VERSION,
        "first_token_tolerance": FIRST_TOKEN_TOLERANCE,
        "later_tolerance": LATER_TOLERANCE,
        "variants": variants,
    }
    return (json.dumps(value, sort_keys=True, ensure_ascii=False) + "\n").encode()


def replay(
    path: Path, recording: Recording, runtime: str, tolerances: tuple[float, float]
) -> dict[str, Any]:
    """Run recorded prompts through a runtime that is installed here.

    Returns:
        `runtime`, `prompts`, `problems` (sentences) and the largest differences, `first` and
        `later`, in nats.

    Raises:
        RuntimeFailure: the child process died or failed.
    """
    cases = recording.model_dump(mode="json")["cases"]
    payload = artifact_payload(path, runtime=runtime) | {"cases": cases}
    replayed = run_job("golden-replay", payload)["cases"]
    problems, first, later = [], 0.0, 0.0
    for number, (then, now) in enumerate(zip(cases, replayed, strict=True), 1):
        found, a, b = selftest.compare(then, now, *tolerances)
        problems += [f"prompt {number}: {problem}" for problem in found]
        first, later = max(first, a), max(later, b)
    return {
        "runtime": runtime,
        "prompts": len(cases),
        "problems": problems,
        "first": first,
        "later": later,
    }


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Step(_Strict):
    """One greedy token."""

    token: int = Field(ge=0)
    logprob: float
    margin: float = Field(ge=0)


class Case(_Strict):
    """One prompt."""

    text: str
    ids: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1, max_length=_LONGEST)
    top: tuple[tuple[Annotated[int, Field(ge=0)], float], ...] = Field(min_length=1)
    steps: tuple[Step, ...] = Field(min_length=1, max_length=256)


class Recording(_Strict):
    """What one runtime said."""

    version: str
    cases: tuple[Case, ...] = Field(min_length=1, max_length=64)


class RecordedVariant(_Strict):
    """What the runtimes said of one variant."""

    path: str
    format: Literal["gguf", "onnx"]
    runtimes: dict[str, Recording] = Field(min_length=1)


class GoldenDocument(_Strict):
    """golden.json."""

    schema_version: Literal[1]
    first_token_tolerance: float = Field(gt=0)
    later_tolerance: float = Field(gt=0)
    variants: dict[str, RecordedVariant]


def parse_golden(data: bytes) -> GoldenDocument:
    """Check a golden.json that may come from anybody.

    Raises:
        CorruptFileError: it is not one.
    """
    try:
        return GoldenDocument.model_validate_json(data)
    except ValidationError as error:
        raise CorruptFileError(f"{FILE}: {first_problem(error)}") from error


class _Engine:
    """A session with the few methods that `selftest.replay` calls."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.encode = session.encode

    def start(self, ids: Sequence[int]) -> Any:
        """Log-probabilities after a fresh sequence."""
        self._session.reset()
        return self.feed(ids)

    def feed(self, ids: Sequence[int]) -> Any:
        """Log-probabilities after some more tokens."""
        self._session.forward(ids)
        return selftest.log_softmax(self._session.last_logits())


def run_record(payload: dict[str, Any], advance: Progress) -> dict[str, Any]:
    """The `golden-record` job, in the child."""
    session = open_session(payload, context=_CONTEXT)
    try:
        cases = [_record_one(session, prompt) for prompt in payload["prompts"]]
        if not (fitting := [case for case in cases if case is not None]):
            raise InputError(f"every prompt for golden vectors is longer than {_LONGEST} tokens")
        return {"cases": fitting}
    finally:
        session.close()


def _record_one(session: Session, prompt: str) -> dict[str, Any] | None:
    try:
        text = session.render([{"role": "user", "content": prompt}])
    except InputError:  # the model was not made for conversations
        text = prompt
    ids = session.encode(text)
    if len(ids) > _LONGEST:
        return None
    engine = _Engine(session)
    row = engine.start(ids)
    best = np.argsort(-row, kind="stable")[:TOP]
    steps: list[dict[str, Any]] = []
    top = [[int(token), round(float(row[token]), _DIGITS)] for token in best]
    while len(steps) < STEPS:
        first, second = np.argsort(-row, kind="stable")[:2]
        logprob, margin = float(row[first]), float(row[first] - row[second])
        steps.append(
            {"token": int(first), "logprob": round(logprob, _DIGITS),
             "margin": round(margin, _DIGITS)}
        )  # fmt: skip
        if int(first) in session.stop_ids:
            break
        row = engine.feed([int(first)])
    return {"text": text, "ids": ids, "top": top, "steps": steps}


def run_replay(payload: dict[str, Any], advance: Progress) -> dict[str, Any]:
    """The `golden-replay` job, in the child."""
    cases = payload["cases"]
    session = open_session(payload, context=selftest.longest(cases))
    try:
        return {"cases": [selftest.replay(_Engine(session), case) for case in cases]}
    finally:
        session.close()
