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
NEAR_TIE = 0.5
"""Lead of a token's logit over another's that other rounding may turn round: kernels quantize
activations in a way of their own on each CPU."""


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
    first_difference: int | None = None
    """Position of the first token that is another one; what follows it has another past."""
    lead: float | None = None
    """There: by how much this machine's logit for its token is above that for the other."""


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
    differs, lead = None, None
    if ended.code == 0 and len(tokens) == len(expected) and tokens != expected:
        pairs = enumerate(zip(tokens, expected, strict=True))
        differs = next(place for place, (there, here) in pairs if there != here)
        lead = _lead(artifact.path, prompt, expected[:differs], expected[differs], tokens[differs])
    equal = tokens == expected
    passed = ended.code == 0 and (equal or (lead is not None and lead <= NEAR_TIE))
    if ended.code:
        reason = transport.why_ended(ended)
    elif equal:
        reason = f"runs, and {len(tokens)} greedy tokens equal this machine's"
    elif lead is None:
        reason = f"runs, but gives {len(tokens)} tokens in place of {len(expected)}"
    elif passed:
        reason = (
            f"runs, and {differs} greedy tokens equal this machine's; of the next one rounding "
            f"decides: two are {lead:.2f} apart here"
        )
    else:
        reason = (
            f"runs, but only {differs} of {len(expected)} greedy tokens equal this machine's, "
            f"which is sure of the next one by {lead:.2f}"
        )
    return Proof(
        outcome="ok" if passed else "failed",
        reason=reason,
        first_difference=differs,
        lead=lead,
        artifact=str(artifact.path),
        quantization=artifact.quantization,
        sha256=artifact.sha256(),
        cpu=transport.cpu,
        build=transport.march,
        tokens=tokens,
        host_tokens=expected,
    )


def _lead(path: Path, prompt: Sequence[int], past: Sequence[int], ours: int, theirs: int) -> float:
    """By how much this machine's logit for its token is above that for another one."""
    from edgeadapt.jobs import open_here

    session = open_here(path, context=64, runtime="llama-cpp", threads=_THREADS)
    try:
        logits = session.all_logits([*prompt, *past])[-1]
    finally:
        session.close()
    return float(logits[ours] - logits[theirs])


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
