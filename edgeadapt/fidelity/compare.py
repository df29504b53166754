"""An artifact beside its references, token by token, in a process of its own.

The child maps the references into memory and compares as it goes: what crosses to the parent is
a few numbers for each token, in a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from edgeadapt.console import progress
from edgeadapt.data.encode import Encoded
from edgeadapt.fidelity.metrics import TokenDivergence, TokenEffect, TokenScores, diverge_rows, join
from edgeadapt.fidelity.references import Reference
from edgeadapt.jobs import artifact_payload, open_session
from edgeadapt.leftovers import scratch
from edgeadapt.runtimes.registry import get_runtime
from edgeadapt.setup.llama_cpp import build_record
from edgeadapt.worker import Progress, run_job

_FILE = "tokens.npz"


@dataclass(frozen=True)
class Engine:
    """On what an artifact runs."""

    runtime: str | None = None
    """By default the preferred one for the artifact's format."""
    threads: int | None = None
    timeout_s: float | None = None
    adapter: Path | None = None
    """What runs beside the artifact, in the engine's own format."""


def compare(
    path: Path,
    encoded: Sequence[Encoded],
    reference: Reference,
    base: Reference | None = None,
    *,
    engine: Engine,
    title: str,
) -> TokenDivergence:
    """Run an artifact over the text of a reference, and compare token by token.

    Args:
        path: the artifact.
        encoded: the text that the references are of.
        reference: what the artifact means to be.
        base: the plain base, to tell how much of the adapter's effect is there.
        engine: what to run it on.
        title: of the progress bar.

    Raises:
        InputError: the artifact cannot be opened.
        RuntimeFailure: the child died, timed out or failed.
    """
    with scratch("compare") as folder:
        payload = artifact_payload(
            path, engine.adapter, runtime=engine.runtime, threads=engine.threads
        ) | {
            "sequences": [{"ids": e.ids, "counts": e.scored} for e in encoded],
            "reference": str(reference.folder),
            "base": base and str(base.folder),
            "out": str(folder),
        }
        total = sum(len(example.ids) for example in encoded)
        with progress(title, total, "tokens") as advance:
            run_job("compare", payload, timeout_s=engine.timeout_s, on_progress=advance)
        return read_divergence(folder / _FILE)


def run_compare(payload: dict[str, Any], advance: Progress) -> dict[str, Any]:
    """The `compare` job, in the child: leaves its arrays in the folder `out`."""
    sequences = payload["sequences"]
    reference = Reference.open(Path(payload["reference"])).log_probs
    base = Reference.open(Path(payload["base"])).log_probs if payload["base"] else None
    longest = max(len(sequence["ids"]) for sequence in sequences)
    session = open_session(payload, context=max(longest, 64))
    parts, start = [], 0
    try:
        for sequence in sequences:
            ids = np.asarray(sequence["ids"])
            wanted = np.flatnonzero(sequence["counts"])
            stop = start + len(wanted)
            logits = session.logits_at(sequence["ids"], (wanted - 1).tolist())
            plain = None if base is None else base[start:stop]
            parts.append(diverge_rows(reference[start:stop], logits, ids[wanted], base=plain))
            start = stop
            advance(len(ids))
    finally:
        session.close()
    with (Path(payload["out"]) / _FILE).open("wb") as file:
        write_divergence(file, join(parts))
    return {}


def write_divergence(file: IO[bytes], divergence: TokenDivergence) -> None:
    """Store every array in NumPy's npz format."""
    arrays: dict[str, Any] = vars(divergence.scores) | {"kl": divergence.kl}
    if divergence.kl_base is not None and divergence.effect is not None:
        arrays |= {"kl_base": divergence.kl_base} | vars(divergence.effect)
    np.savez(file, **arrays)


def read_divergence(path: Path) -> TokenDivergence:
    """What `write_divergence` wrote."""
    with np.load(path) as stored:
        arrays = dict(stored)
    based = "kl_base" in arrays
    return TokenDivergence(
        TokenScores(arrays["nll"], arrays["top"]),
        arrays["kl"],
        arrays["kl_base"] if based else None,
        TokenEffect(arrays["along"], arrays["square"]) if based else None,
    )


def engine_identity(runtime: str) -> dict[str, Any]:
    """What a runtime's figures depend on: one version of llama.cpp is built in many ways."""
    built = build_record() if runtime == "llama-cpp" else None
    return {"name": runtime, "version": get_runtime(runtime).version(), "build": built}
