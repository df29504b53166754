"""Both ONNX engines over the same folders: equal to torch, and clear about damaged files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest

from edgeadapt.artifact import Artifact, open_artifact
from edgeadapt.converters.onnx.converter import OnnxConverter
from edgeadapt.converters.onnx.options import OnnxOptions
from edgeadapt.errors import (
    CorruptFileError,
    EdgeAdaptError,
    InputError,
    RuntimeFailure,
    UnsupportedError,
)
from edgeadapt.runtimes import Session, SessionSettings, get_runtime
from edgeadapt.runtimes.onnx_providers import available
from tests.onnx_folders import exported, request
from tests.tiny import save_llama

pytest.importorskip("onnxruntime_genai")

_LOSS = {"fp16": 0.01, "int8": 0.05, "int8-dynamic": 0.2, "int4": 0.5}
"""Most mean error that is plain rounding, in standard deviations of the logits."""
ENGINES = ("ort-genai", "onnxruntime")
IDS = np.random.default_rng(0).integers(3, 320, 150).tolist()
SETTINGS = SessionSettings(threads=2, context=200)


@pytest.fixture(scope="module")
def expected(tiny_model: Path) -> np.ndarray:
    """What torch says at every position."""
    return get_runtime("torch").load(open_artifact(tiny_model), SETTINGS).all_logits(IDS)


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def session(engine: str, tiny_model: Path) -> Session:
    return get_runtime(engine).load(exported(tiny_model, "fp32"), SETTINGS)


def test_all_logits_equal_torch(session: Session, expected: np.ndarray) -> None:
    assert np.abs(session.all_logits(IDS) - expected).max() < 1e-4


def test_cached_logits_equal_torch(session: Session, expected: np.ndarray) -> None:
    for start, stop in ((0, 1), (1, 70), (70, 71), (71, 72), (72, 150)):
        session.forward(IDS[start:stop])
        assert session.position == stop
        assert np.abs(session.last_logits() - expected[stop - 1]).max() < 1e-4
        assert session.greedy() == expected[stop - 1].argmax()


def test_reset_forgets(session: Session, expected: np.ndarray) -> None:
    session.forward(IDS[50:120])
    session.reset()
    assert session.position == 0
    session.forward(IDS[:30])
    assert np.abs(session.last_logits() - expected[29]).max() < 1e-4


def test_last_logits_are_a_copy(session: Session) -> None:
    session.forward(IDS[:5])
    first = session.last_logits()
    kept = first.copy()
    session.forward(IDS[5:6])
    np.testing.assert_array_equal(first, kept)
    assert first.shape == (session.vocab_size,) == (320,)


@pytest.mark.parametrize("quantization", ["fp16", "int8", "int8-dynamic", "int4"])
def test_quantized_is_near(
    engine: str, tiny_model: Path, expected: np.ndarray, quantization: str
) -> None:
    session = get_runtime(engine).load(exported(tiny_model, quantization), SETTINGS)
    error = np.abs(session.all_logits(IDS) - expected).mean()
    assert 0 < error < _LOSS[quantization] * expected.std()


def test_engines_agree_on_int4(tiny_model: Path) -> None:
    first, second = (
        get_runtime(name).load(exported(tiny_model, "int4"), SETTINGS).all_logits(IDS)
        for name in ENGINES
    )
    np.testing.assert_allclose(first, second, atol=1e-4)


@pytest.mark.parametrize("intermediate", [96, 128])
def test_zero_points_are_read(tmp_path: Path, intermediate: int) -> None:
    """Also by the kernels that round activations, and in rows with an odd number of blocks."""
    model = save_llama(tmp_path / "model", intermediate=intermediate)
    artifact = exported(model, "int4")
    assert artifact.lineage["settings"]["symmetric"] is False
    assert "zero_points" not in artifact.lineage
    options = OnnxOptions(accuracy_level=1)  # computes with the rounded weights: test_decoder
    asked = request(model, "int4", onnx=options)
    exact = OnnxConverter().convert(asked, tmp_path / "exact")
    wanted = get_runtime("onnxruntime").load(exact, SETTINGS).all_logits(IDS)
    for engine in ENGINES:
        found = get_runtime(engine).load(artifact, SETTINGS).all_logits(IDS)
        assert 0 < np.abs(found - wanted).mean() < 0.05 * wanted.std()


def test_generation_stops_at_the_stop_token(session: Session) -> None:
    """The stop token is learnt from the run itself: what comes third ends the second run."""
    assert session.stop_ids == {2}
    session.stop_ids = frozenset()
    ids = IDS[:9]
    free = list(session.generate(ids, max_tokens=6, temperature=5.0, seed=1))
    assert len(set(free)) > 1
    session.reset()
    session.stop_ids = frozenset({free[3]})
    stopped = list(session.generate(ids, max_tokens=6, temperature=5.0, seed=1))
    assert stopped == free[: free.index(free[3])]


def test_context_is_enforced(session: Session, expected: np.ndarray) -> None:
    session.forward(IDS)
    with pytest.raises(InputError, match=r"201.*200"):
        session.forward(IDS[:51])
    assert session.position == 150
    session.forward(IDS[:50])
    assert session.position == 200


def test_no_tokens(session: Session) -> None:
    with pytest.raises(InputError, match="no tokens"):
        session.forward([])


def test_engine_failure_keeps_the_session(
    session: Session, expected: np.ndarray, capfd: pytest.CaptureFixture[str]
) -> None:
    session.forward(IDS[:10])
    with pytest.raises(RuntimeFailure):
        session.forward([99999])
    assert session.position == 10
    session.forward(IDS[10:20])
    assert np.abs(session.last_logits() - expected[19]).max() < 1e-4
    assert capfd.readouterr() == ("", "")


def test_it_says_what_it_is(session: Session, engine: str) -> None:
    info = session.build_info()
    assert all(info.values())
    assert info["onnxruntime"][0].isdigit()
    assert info["providers"] == "CPUExecutionProvider"
    assert session.threads_in_use() == 2
    assert get_runtime(engine).version()[0].isdigit()


def test_genai_tokenizer_gives_the_same_ids(tiny_model: Path) -> None:
    import onnxruntime_genai as og

    path = exported(tiny_model, "fp32").path
    session = get_runtime("onnxruntime").load(exported(tiny_model, "fp32"), SETTINGS)
    theirs = og.Tokenizer(og.Model(str(path)))
    for text in ("def main(x): 12345", "Grüße 日本語 🙂", "<|im_start|>user\nhi<|im_end|>\n"):
        assert theirs.encode(text).tolist() == session.encode(text)


@pytest.mark.parametrize("name", ["xnnpack", "qnn", "nnapi", "cuda", "tensorrt", "coreml"])
def test_absent_provider(engine: str, tiny_model: Path, name: str) -> None:
    """Named, with what is there and what to type, before anything is loaded."""
    settings = SessionSettings(threads=1, context=64, provider=name.upper())
    if name in available():
        pytest.skip("it is there")
    with pytest.raises(UnsupportedError, match=f"{name}.*(cpu|onnxruntime)"):
        get_runtime(engine).load(exported(tiny_model, "fp32"), settings)


def test_unknown_provider(engine: str, tiny_model: Path) -> None:
    with pytest.raises(InputError, match=r"'hexagon'.*xnnpack.*directml"):
        settings = SessionSettings(threads=1, context=64, provider="hexagon")
        get_runtime(engine).load(exported(tiny_model, "fp32"), settings)


def test_other_runtimes_have_no_providers() -> None:
    get_runtime("onnxruntime").check_provider("XNNPACK")
    with pytest.raises(InputError, match=r"ort-genai.*xnnpack.*cuda"):
        get_runtime("ort-genai").check_provider("xnnpack")
    with pytest.raises(InputError, match="torch has no execution provider 'cuda'"):
        get_runtime("torch").check_provider("cuda")


def test_session_options_travel_with_the_folder(engine: str, tiny_model: Path) -> None:
    entry = "session.intra_op.allow_spinning"
    options = OnnxOptions(session={"intra_op_num_threads": 2, entry: "0"})
    out = Path(mkdtemp(dir=tiny_model.parent)) / "onnx"
    artifact = OnnxConverter().convert(request(tiny_model, "fp32", onnx=options), out)
    genai = json.loads((out / "genai_config.json").read_text())
    written = genai["model"]["decoder"]["session_options"]
    assert written[entry] == "0" and written["intra_op_num_threads"] == 2
    session = get_runtime(engine).load(artifact, SETTINGS)
    if engine == "onnxruntime":
        options = session._session.get_session_options()  # type: ignore[attr-defined]
        assert options.get_session_config_entry(entry) == "0"
    assert session.all_logits(IDS[:9]).shape == (9, 320)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def _garbage(path: Path) -> None:
    path.write_bytes(b"\x13\x37" * 500)


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "genai_config.json"])
@pytest.mark.parametrize("damage", [Path.unlink, _truncate, _garbage])
def test_damaged_folder(
    engine: str,
    tiny_model: Path,
    tmp_path: Path,
    name: str,
    damage: Callable[[Path], None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    if name == "model.onnx.data" and damage is _garbage:
        pytest.skip("as short as the truncated one")
    shutil.copytree(exported(tiny_model, "fp32").path, tmp_path / "copy")
    damage(tmp_path / "copy" / name)
    with pytest.raises(InputError) as caught:
        get_runtime(engine).load(Artifact(tmp_path / "copy", "onnx", "fp32"), SETTINGS)
    assert "\n" not in str(caught.value)
    assert "copy" in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("section", [{}, {"model": 3}, {"model": {"decoder": {}}}, []])
def test_config_without_a_decoder(
    engine: str, tiny_model: Path, tmp_path: Path, section: object
) -> None:
    shutil.copytree(exported(tiny_model, "fp32").path, tmp_path / "copy")
    (tmp_path / "copy" / "genai_config.json").write_text(json.dumps(section))
    with pytest.raises(CorruptFileError, match="genai_config"):
        get_runtime(engine).load(Artifact(tmp_path / "copy", "onnx", "fp32"), SETTINGS)


@pytest.mark.parametrize("format", ["gguf", "hf"])
def test_other_formats_are_refused(engine: str, tmp_path: Path, format: str) -> None:
    with pytest.raises(EdgeAdaptError, match="onnx"):
        get_runtime(engine).load(Artifact(tmp_path, format, "x"), SETTINGS)
