"""What a model said when it was bundled, replayed: here, and by the self-test alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgeadapt.bundle import selftest
from edgeadapt.bundle.golden import parse_golden
from edgeadapt.bundle.make import BundleSettings, make_bundle
from edgeadapt.bundle.manifest import digest_bytes
from edgeadapt.bundle.verify import VerifySettings, verify_bundle
from edgeadapt.errors import CorruptFileError, GateFailure, InputError

pytest.importorskip("llama_cpp")

RUN = VerifySettings(run=True)


@pytest.fixture(scope="module")
def recorded(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("recorded") / "tiny"
    make_bundle(run_folder, out, BundleSettings())
    return out


@pytest.fixture
def copy(recorded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(recorded, tmp_path / "copy"))


def rewrite(bundle: Path, name: str, data: bytes) -> None:
    """Change a file and the manifest with it, as its author would."""
    from edgeadapt.bundle.contents import _entry

    (bundle / name).write_bytes(data)
    value = json.loads((bundle / "manifest.json").read_text())
    value["files"][name] = _entry(data).model_dump()
    manifest = json.dumps(value).encode()
    (bundle / "manifest.json").write_bytes(manifest)
    (bundle / "manifest.sha256").write_bytes(digest_bytes(manifest))


def changed_golden(bundle: Path, change: Any) -> None:
    value = json.loads((bundle / "golden.json").read_text())
    change(value["variants"]["gguf-F32"]["runtimes"]["llama-cpp"]["cases"][0])
    rewrite(bundle, "golden.json", json.dumps(value).encode())


def self_test(bundle: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", "selftest.py", "--threads", "1"],
        cwd=bundle, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_the_same_runtime_says_the_same(recorded: Path) -> None:
    (row,) = verify_bundle(recorded, RUN)["replayed"]
    assert (row["variant"], row["runtime"]) == ("gguf-F32", "llama-cpp")
    assert row["first"] < 0.01 and row["later"] < 0.01


def test_the_self_test_says_the_same_without_edgeadapt(recorded: Path) -> None:
    done = self_test(recorded)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all is well" in done.stdout
    assert "edgeadapt" not in (recorded / "selftest.py").read_text().split('"""', 2)[2]


def test_recording_again_gives_the_same(recorded: Path, run_folder: Path, tmp_path: Path) -> None:
    """Every test has a cache of its own, so that this records again."""
    make_bundle(run_folder, tmp_path / "again", BundleSettings())
    for name in ("golden.json", "manifest.json"):
        assert (tmp_path / "again" / name).read_bytes() == (recorded / name).read_bytes()


def test_another_model_is_caught_by_both(copy: Path, tmp_path: Path) -> None:
    from edgeadapt.converters.base import ConversionRequest
    from edgeadapt.converters.gguf.converter import GgufConverter
    from edgeadapt.safetensors_io import SafetensorsSource
    from tests.tiny import save_llama

    other = save_llama(tmp_path / "other", seed=7)
    request = ConversionRequest(SafetensorsSource(other), other, "F32", "tiny", threads=1)
    model = GgufConverter().convert(request, tmp_path / "other.gguf").path
    rewrite(copy, "models/tiny-F32.gguf", model.read_bytes())
    with pytest.raises(GateFailure, match="gguf-F32 on llama-cpp: prompt 1: log-probabilities"):
        verify_bundle(copy, RUN)
    done = self_test(copy)
    assert done.returncode == 1 and "FAILED: gguf-F32, prompt 1" in done.stdout


def test_a_spoilt_file_is_caught_by_the_self_test(copy: Path) -> None:
    (copy / "tokenizer/tokenizer.json").write_text("{}")
    done = self_test(copy)
    assert done.returncode == 1 and "tokenizer/tokenizer.json is missing or was" in done.stdout


def test_other_tokens_are_caught(copy: Path) -> None:
    changed_golden(copy, lambda case: case["ids"].append(5))
    with pytest.raises(GateFailure, match="other tokens than recorded"):
        verify_bundle(copy, RUN)


@pytest.mark.parametrize(
    "change",
    [
        lambda case: case.update(steps=[]),
        lambda case: case.update(ids=[-1]),
        lambda case: case.update(top=[[1, "x"]]),
        lambda case: case.update(top=[[1]]),
        lambda case: case["steps"][0].update(margin=float("nan")),
        lambda case: case.update(more=1),
    ],
)
def test_malformed_vectors_are_refused(copy: Path, change: Any) -> None:
    changed_golden(copy, change)
    with pytest.raises(CorruptFileError, match=r"golden\.json"):
        verify_bundle(copy, RUN)


def test_ids_beyond_the_vocabulary_are_refused(copy: Path) -> None:
    changed_golden(copy, lambda case: case["top"][0].__setitem__(0, 10**6))
    from edgeadapt.errors import EdgeAdaptError

    with pytest.raises(EdgeAdaptError):
        verify_bundle(copy, RUN)


def test_a_bundle_without_vectors_cannot_be_replayed(made: Path) -> None:
    with pytest.raises(InputError, match="no golden vectors"):
        verify_bundle(made, RUN)


def case(**changes: Any) -> dict[str, Any]:
    step = {"token": 3, "logprob": -0.5, "margin": 2.0}
    value = {"ids": [1, 2], "top": [[3, -0.5], [4, -2.5]], "steps": [step, step | {"token": 9}]}
    return value | changes


def replayed(first: list[float], steps: list[tuple[int, float]]) -> dict[str, Any]:
    told = [{"greedy": token, "logprob": logprob} for token, logprob in steps]
    return {"ids": [1, 2], "first": first, "steps": told}


@pytest.mark.parametrize(
    ("first", "steps", "told"),
    [
        ([-0.5, -2.5], [(3, -0.5), (9, -0.5)], ""),
        ([-0.6, -2.9], [(3, -0.5), (9, -1.4)], ""),
        ([-0.5, -3.1], [(3, -0.5), (9, -0.5)], "first token are off by 0.600"),
        ([float("nan"), -2.5], [(3, -0.5), (9, -0.5)], "first token are off by"),
        ([-0.5, -2.5], [(3, -0.5), (9, -1.6)], "answer are off by 1.100"),
        ([-0.5, -2.5], [(3, -0.5), (8, -0.5)], "token 2 of the answer is 8, expected 9"),
    ],
)
def test_compare(first: list[float], steps: list[tuple[int, float]], told: str) -> None:
    problems, _, _ = selftest.compare(case(), replayed(first, steps), 0.5, 1.0)
    assert told in " ".join(problems) and bool(problems) == bool(told)


def test_where_two_tokens_are_about_as_likely_either_may_come() -> None:
    close = case()
    close["steps"] = [close["steps"][0], close["steps"][1] | {"margin": 0.9}]
    assert (
        selftest.compare(close, replayed([-0.5, -2.5], [(3, -0.5), (8, -0.5)]), 0.5, 1.0)[0] == []
    )


def test_recorded_vectors_are_what_parse_golden_takes(recorded: Path) -> None:
    document = parse_golden((recorded / "golden.json").read_bytes())
    recording = document.variants["gguf-F32"].runtimes["llama-cpp"]
    assert len(recording.cases[0].top) == 10 and recording.cases[0].ids
