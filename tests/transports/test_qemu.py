"""Artifacts on emulated Arm CPUs: the same tokens, or a named reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from edgeadapt.cli import cli
from edgeadapt.converters.base import ConversionRequest
from edgeadapt.converters.gguf.converter import GgufConverter
from edgeadapt.errors import InputError, MissingSetupError
from edgeadapt.jobs import open_here
from edgeadapt.safetensors_io import SafetensorsSource
from edgeadapt.setup.aarch64 import BUILDS, program_of
from edgeadapt.transports import proof, qemu
from edgeadapt.transports.base import Ended, open_transport
from edgeadapt.transports.proof import Proof
from edgeadapt.transports.qemu import QemuTransport
from tests.tiny import save_llama

PLAIN, DOTPROD = BUILDS
try:
    PROGRAMS = {march: program_of(march) for march in BUILDS}
except MissingSetupError as error:  # before tests get a cache of their own
    PROGRAMS, MISSING = {}, str(error)


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> None:
    if not PROGRAMS:
        pytest.skip(MISSING)
    if shutil.which(qemu.EMULATOR) is None:
        pytest.skip("no qemu-aarch64 here")
    monkeypatch.setattr(qemu, "program_of", PROGRAMS.__getitem__)


@pytest.fixture(scope="module")
def q4_0(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that is nowhere undecided: rounding differs from CPU to CPU."""
    pytest.importorskip("llama_cpp")
    for seed in range(50):
        folder = save_llama(tmp_path_factory.mktemp("qemu") / "model", seed=seed)
        request = ConversionRequest(SafetensorsSource(folder), folder, "Q4_0", "tiny", threads=2)
        path = GgufConverter().convert(request, folder.parent / "tiny.gguf").path
        if smallest_lead(path) > 0.1:
            return path
    raise AssertionError("each of these models is undecided somewhere")


def smallest_lead(path: Path) -> float:
    """By how much, at least, the logit of a greedy token is above that of the next best."""
    prompt, tokens = proof.host_tokens(path)
    session = open_here(path, context=64, threads=2)
    try:
        logits = session.all_logits([*prompt, *tokens])[len(prompt) - 1 : -1]
    finally:
        session.close()
    best = np.sort(logits, axis=1)[:, -2:]
    return float((best[:, 1] - best[:, 0]).min())


def bench(artifact: Path, url: str) -> Result:
    return CliRunner().invoke(cli, ["bench", str(artifact), "--on", url, "--json"])


@pytest.mark.e2e  # emulation takes seconds
@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize(
    ("cpu", "march"),
    [("cortex-a72", PLAIN), ("cortex-a76", PLAIN), ("cortex-a76", DOTPROD)],
)
def test_the_same_tokens_there_as_here(q4_0: Path, cpu: str, march: str) -> None:
    done = bench(q4_0, f"qemu://{cpu}/{march}")
    assert done.exit_code == 0, done.output
    (record,) = json.loads(done.stdout)
    found = Proof.model_validate(record)
    assert (found.outcome, found.cpu, found.build) == ("ok", cpu, march)
    assert len(found.tokens) == 24
    assert found.tokens == found.host_tokens
    assert not [name for name in record if name.endswith(("_s", "_tps"))]  # no speed


@pytest.mark.e2e  # emulation takes seconds
@pytest.mark.usefixtures("programs")
def test_instructions_that_a_cpu_lacks_are_named(q4_0: Path) -> None:
    done = bench(q4_0, f"qemu://cortex-a72/{DOTPROD}")
    assert done.exit_code == 1
    (record,) = json.loads(done.stdout)
    assert record["outcome"] == "failed"
    why = "illegal instruction: this build needs dotprod and fp16, cortex-a72 has neither"
    assert record["reason"] == why
    assert why in done.stderr


@pytest.mark.e2e  # emulation takes seconds
@pytest.mark.usefixtures("programs")
def test_other_tokens_than_here_are_a_failure(q4_0: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt, expected = proof.host_tokens(q4_0)
    monkeypatch.setattr(proof, "host_tokens", lambda _: ([*prompt[:-1], 5], expected))
    monkeypatch.setattr(proof, "NEAR_TIE", -1e9)  # a random model is never sure
    done = bench(q4_0, "qemu://cortex-a76")
    assert done.exit_code == 1
    assert "of 24 greedy tokens equal this machine's, which is sure of the next" in done.stderr


@pytest.mark.e2e  # emulation takes seconds
@pytest.mark.usefixtures("programs")
def test_a_near_tie_is_no_failure(q4_0: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt, expected = proof.host_tokens(q4_0)
    other = (*expected[:20], 1 + expected[20], *expected[21:])
    monkeypatch.setattr(proof, "host_tokens", lambda _: (prompt, other))
    monkeypatch.setattr(proof, "NEAR_TIE", 1e9)
    done = bench(q4_0, "qemu://cortex-a76")
    assert done.exit_code == 0
    found = Proof.model_validate(json.loads(done.stdout)[0])
    assert found.first_difference == 20 and found.lead is not None and found.lead < 0
    assert "20 greedy tokens equal this machine's" in found.reason


def test_how_it_ended_is_said() -> None:
    there = QemuTransport("qemu://cortex-a76")
    assert "does not run the armv8-a build" in there.why_ended(Ended(-4, b"", ""))
    assert there.why_ended(Ended(-11, b"", "oh")).endswith("failed on cortex-a76: oh (SIGSEGV)")
    assert there.why_ended(Ended(3, b"", "oh")).endswith("oh (exit code 3)")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("qemu://", "malformed"),
        ("qemu://-help", "malformed"),
        ("qemu://cortex-x9", "cortex-x9 is not known here; choose one of cortex-a53"),
        ("qemu://cortex-a76/armv7", "no build armv7; choose one of armv8-a"),
    ],
)
def test_urls_that_are_refused(url: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_transport(url)


def test_without_a_build_it_says_what_to_type(tiny_gguf: Path) -> None:
    done = bench(tiny_gguf, "qemu://cortex-a76")
    assert done.exit_code == 2
    assert "edgeadapt setup qemu" in done.stderr or "sudo apt install" in done.stderr
