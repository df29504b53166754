"""Proof that an artifact runs on a CPU model at all, and says there what it says here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from edgeadapt.artifact import Artifact, open_artifact
from edgeadapt.console import emit, emit_json, log
from edgeadapt.errors import GateFailure, InputError
from edgeadapt.transports.place import needed_files
from edgeadapt.transports.qemu import QemuTransport

_PROMPT_TOKENS = 16
_NEW_TOKENS = 24
_THREADS = 2


class Proof(BaseModel):
    """One artifact on one emulated CPU. There is no speed in it: emulation tells none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    kind: Literal["proof"] = "proof"
    outcome: Literal["ok", "failed"]
    reason: str
    """One sentence."""
    artifact: str
    quantization: str
    sha256: str
    cpu: str
    """QEMU's name."""
    build: str
    """-march of llama.cpp."""
    tokens: tuple[int, ...]
    """Greedy, after a fixed prompt, on the emulated CPU; those before it failed."""
    host_tokens: tuple[int, ...]
    """The same on this machine."""


def prove_and_show(
    url: str, artifacts: Sequence[Path], *, out: Path | None, as_json: bool, timeout_s: float
) -> None:
    """Run each artifact on an emulated CPU and print what became of it.

    Args:
        url: `qemu://CPU[/BUILD]`.
        artifacts: GGUF files.
        out: also write the records there.
        as_json: print records in place of sentences.
        timeout_s: for each artifact.

    Raises:
        InputError: the URL or an artifact is wrong.
        MissingSetupError: emulator or build are not there.
        GateFailure: an artifact does not run there, or says something else.
    """
    from edgeadapt.files import write_json

    transport = QemuTransport(url)
    opened = [open_artifact(path) for path in artifacts]
    for artifact in opened:
        if artifact.format != "gguf":
            raise InputError(f"{artifact.path} is {artifact.format}; only GGUF files run on qemu")
    with transport:
        proofs = [_prove(transport, artifact, timeout_s) for artifact in opened]
    document = [proof.model_dump(mode="json") for proof in proofs]
    if out is not None:
        write_json(out, document, overwrite=False)
    if as_json:
        emit_json(document)
    else:
        for proof in proofs:
            emit(f"{proof.artifact} on {proof.cpu} ({proof.build}): {proof.reason}")
    failed = [proof for proof in proofs if proof.outcome != "ok"]
    if failed:
        raise GateFailure(f"{failed[0].artifact} on {failed[0].cpu}: {failed[0].reason}")


def _prove(transport: QemuTransport, artifact: Artifact, timeout_s: float) -> Proof:
    log.info("%s on an %s, which takes a while", artifact.path.name, transport.name)
    prompt, expected = host_tokens(artifact.path)
    place, files = needed_files(artifact.path, "0")
    arguments = [place, str(len(expected)), str(_THREADS), *map(str, prompt)]
    ended = transport.run(arguments, files, timeout_s=timeout_s)
    tokens = tuple(int(word) for word in ended.stdout.split())
    same = sum(1 for a, b in zip(tokens, expected, strict=False) if a == b)
    if ended.code:
        outcome, reason = "failed", transport.why_ended(ended)
    elif tokens == expected:
        outcome, reason = "ok", f"runs, and {len(tokens)} greedy tokens equal this machine's"
    else:
        outcome = "failed"
        reason = f"runs, but {same} of {len(expected)} greedy tokens equal this machine's"
    return Proof(
        outcome="ok" if outcome == "ok" else "failed",
        reason=reason,
        artifact=str(artifact.path),
        quantization=artifact.quantization,
        sha256=artifact.sha256(),
        cpu=transport.cpu,
        build=transport.march,
        tokens=tokens,
        host_tokens=expected,
    )


def host_tokens(path: Path) -> tuple[list[int], tuple[int, ...]]:
    """The fixed prompt's ids, and what llama.cpp says after it on this machine."""
    from edgeadapt.bench.protocol import prompt_ids, repetition
    from edgeadapt.jobs import open_here

    session = open_here(path, context=64, runtime="llama-cpp", threads=_THREADS)
    try:
        prompt = prompt_ids(session, _PROMPT_TOKENS)
        found = repetition(session, prompt, _NEW_TOKENS - 1)
    finally:
        session.close()
    return [int(token) for token in prompt], tuple(int(token) for token in found.tokens)
