"""A conversation that starts after a warm prompt is the one that runs all of it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from edgeadapt.console import log
from edgeadapt.errors import CorruptFileError, InputError, UnsupportedError
from edgeadapt.export import export, open_model
from edgeadapt.export_separate import export_adapter, export_prefix
from edgeadapt.jobs import artifact_payload, open_here, open_session
from edgeadapt.runtimes.base import Session
from edgeadapt.warm.make import Warmed, make_warm
from edgeadapt.warm.start import WarmStart, start_after
from edgeadapt.warm.state import kept_file
from tests.runtimes.test_prefix import train_prefix
from tests.tiny import CHAT_TEMPLATE, save_model

pytest.importorskip("llama_cpp")
pytest.importorskip("onnxruntime")

CONTEXT = 200
PROMPT = "Be brief. The quick brown fox jumps over the lazy dog."
QUESTION = "def main(argument: int)?"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A model in both formats, each with a warm prompt."""
    folder = tmp_path_factory.mktemp("made")
    base = save_model(folder / "base", "llama")
    prompt = folder / "system.txt"
    prompt.write_text(PROMPT)
    model = open_model(str(base))
    gguf = export(model, "gguf", "F32", folder / "m.gguf").path
    onnx = export(model, "onnx", "fp32", folder / "m-onnx").path
    return {
        "base": base,
        "prompt": prompt,
        "gguf": gguf,
        "onnx": onnx,
        "warm-gguf": make_warm(gguf, prompt, threads=1),
        "warm-onnx": make_warm(onnx, prompt, threads=1),
    }


@contextmanager
def opened(
    path: Path, adapter: Path | None = None, *, context: int = CONTEXT, exact: bool = False
) -> Iterator[Session]:
    payload = artifact_payload(path, adapter, threads=1, keeping=True) | {"exact": exact}
    session = open_session(payload, context=context)
    try:
        yield session
    finally:
        session.close()


def question(session: Session, warmed: Warmed) -> list[int]:
    """Tokens of a conversation, after those of the warm prompt."""
    text = session.render([*warmed.prompt.messages, {"role": "user", "content": QUESTION}])
    ids = session.encode(text)
    known = list(warmed.prompt.ids)
    assert ids[: len(known)] == known and len(ids) > len(known) + 5
    return ids[len(known) :]


def run(session: Session, ids: list[int], count: int = 8) -> tuple[list[int], np.ndarray]:
    """Greedy tokens, and the logits that each was chosen by."""
    session.forward(ids)
    tokens, logits = [], []
    for _ in range(count):
        logits.append(session.last_logits())
        tokens.append(session.greedy())
        session.forward(tokens[-1:])
    return tokens, np.stack(logits)


def cold(session: Session, warmed: Warmed, rest: list[int]) -> tuple[list[int], np.ndarray]:
    """The same from an empty cache, in the same two batches."""
    session.reset()
    session.forward(warmed.prompt.ids)
    return run(session, rest)


def same(start: WarmStart, warmed: Warmed) -> bool:
    """Whether tokens and logits after the state are bit for bit those of running everything."""
    session = start.session
    rest = question(session, warmed)
    expected, logits = cold(session, warmed, rest)
    for _ in range(2):  # an earlier conversation leaves nothing behind
        start.begin()
        if session.position != session.start + len(warmed.prompt.ids):
            return False
        found, given = run(session, rest)
        if found != expected or not np.array_equal(given, logits):
            return False
    return True


@pytest.mark.parametrize("format", ["gguf", "onnx"])
def test_it_is_what_running_everything_gives(made: dict[str, Any], format: str) -> None:
    warmed: Warmed = made[f"warm-{format}"]
    assert len(warmed.prompt.ids) > 30
    assert warmed.state_bytes == warmed.state.stat().st_size
    with opened(made[format]) as session:
        start = start_after(session, warmed.path, made[format])
        assert start.origin == "shipped"
        assert same(start, warmed)


@pytest.mark.parametrize("format", ["gguf", "onnx"])
def test_it_is_what_torch_gives(made: dict[str, Any], format: str) -> None:
    """Within what the project's runtimes are held to; batches of other sizes round otherwise."""
    warmed: Warmed = made[f"warm-{format}"]
    model: Any = AutoModelForCausalLM.from_pretrained(made["base"], dtype=torch.float32)
    with opened(made[format], exact=True) as session:
        start = start_after(session, warmed.path, made[format])
        start.begin()
        rest = question(session, warmed)
        tokens, logits = run(session, rest)
    ids = [*warmed.prompt.ids, *rest, *tokens]
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([ids])).logits[0].numpy()
    assert abs(logits - expected[-len(tokens) - 1 : -1]).max() <= 1e-3


FAULTS: dict[str, Callable[[WarmStart], None]] = {
    "dropped": lambda start: start.session.reset(),
    "of another prompt": lambda start: start.session.restore_state(other_state(start)),
    "rolled": lambda start: start.session.restore_state(rolled(start.state)),
}


def other_state(start: WarmStart) -> bytes:
    start.session.reset()
    start.session.forward(start.prompt.ids[::-1])
    return start.session.save_state()


def rolled(state: bytes) -> bytes:
    """The same head, and the last half of the keys and values moved by one position or more."""
    half = len(state) // 2
    values = np.frombuffer(state[half:], np.uint8)
    return state[:half] + np.roll(values, 4096).tobytes()


@pytest.mark.parametrize(
    ("format", "fault"),
    # the values in llama.cpp's state have heads between them
    [("gguf", fault) for fault in FAULTS if fault != "rolled"]
    + [("onnx", fault) for fault in FAULTS],
)
def test_a_wrong_state_would_be_seen(
    made: dict[str, Any], format: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    warmed: Warmed = made[f"warm-{format}"]
    with opened(made[format]) as session:
        start = start_after(session, warmed.path, made[format])
        assert same(start, warmed)
        monkeypatch.setattr(WarmStart, "begin", FAULTS[fault])
        assert not same(start, warmed)
        # not by the position alone
        rest = question(session, warmed)
        _, logits = cold(session, warmed, rest)
        start.begin()
        assert abs(run(session, rest)[1] - logits).max() > 0.01


@pytest.mark.parametrize("family", ["gemma3", "qwen3"])
def test_a_family_with_sliding_windows_and_another(tmp_path: Path, family: str) -> None:
    base = save_model(tmp_path / "base", family)
    artifact = export(open_model(str(base)), "gguf", "F32", tmp_path / "m.gguf").path
    prompt = tmp_path / "system.txt"
    prompt.write_text(PROMPT)  # longer than the window
    warmed = make_warm(artifact, prompt, threads=1)
    with opened(artifact) as session:
        assert same(start_after(session, warmed.path, artifact), warmed)


def lora_beside(base: Path, out: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    peft.get_peft_model(model, config).save_pretrained(out)
    return export_adapter(str(base), [out], "gguf", None, out.with_suffix(".gguf")).path


def test_adapters_beside_belong_to_it(made: dict[str, Any], tmp_path: Path) -> None:
    one, other = (lora_beside(made["base"], tmp_path / f"lora{i}", i) for i in range(2))
    gguf = made["gguf"]
    warmed = make_warm(gguf, made["prompt"], tmp_path / "one.warm.json", adapter=one, threads=1)
    plain: Warmed = made["warm-gguf"]
    assert warmed.state.read_bytes() != plain.state.read_bytes()
    with opened(gguf, one) as session:
        assert same(start_after(session, warmed.path, gguf, one), warmed)
        with pytest.raises(InputError, match=r"computed without an adapter, and lora0\.gguf is"):
            start_after(session, plain.path, gguf, one)
    for active, why in ((other, "another adapter, lora0.gguf, than lora1.gguf"),
                        (None, "with the adapter lora0.gguf, and none is active")):  # fmt: skip
        with opened(gguf, active) as session, pytest.raises(InputError, match=re.escape(why)):
            start_after(session, warmed.path, gguf, active)


@pytest.mark.parametrize("format", ["gguf", "onnx"])
def test_it_goes_after_a_trained_prefix(made: dict[str, Any], format: str, tmp_path: Path) -> None:
    adapter = train_prefix(made["base"], tmp_path / "adapter", "prefix")
    prefix = export_prefix(str(made["base"]), [adapter], tmp_path / "p.safetensors").path
    artifact = made[format]
    out = tmp_path / "p.warm.json"
    warmed = make_warm(artifact, made["prompt"], out, adapter=prefix, threads=1)
    with opened(artifact, prefix) as session:
        start = start_after(session, warmed.path, artifact, prefix)
        assert session.start == 5
        assert start.origin == "shipped"
        assert same(start, warmed)


def exported_to(base: Path, out: Path, quantization: str = "F32") -> Path:
    return export(open_model(str(base)), "gguf", quantization, out).path


def test_another_model_is_refused(made: dict[str, Any], tmp_path: Path) -> None:
    base, warmed = made["base"], made["warm-gguf"]
    changed = shutil.copytree(base, tmp_path / "template")
    config = json.loads((changed / "tokenizer_config.json").read_text())
    config["chat_template"] = CHAT_TEMPLATE.replace("im_start|>' + m", "im_start|> ' + m")
    (changed / "tokenizer_config.json").write_text(json.dumps(config))
    lora_beside(base, tmp_path / "lora", 0)
    merged = open_model(str(base), tmp_path / "lora")
    cases = {
        "base with sha256": exported_to(
            save_model(tmp_path / "other", "llama", seed=1), tmp_path / "other.gguf"
        ),
        "adapters none merged in": export(merged, "gguf", "F32", tmp_path / "merged.gguf").path,
        "for gguf F32, and this one is gguf Q8_0": exported_to(
            base, tmp_path / "q.gguf", "Q8_0"
        ),
        "chat template writes the prompt otherwise": exported_to(changed, tmp_path / "t.gguf"),
        "for gguf F32, and this one is onnx fp32": made["onnx"],
    }  # fmt: skip
    for why, artifact in cases.items():
        with opened(artifact) as session, pytest.raises(InputError, match=why) as caught:
            start_after(session, warmed.path, artifact)
        assert "edgeadapt warm" in str(caught.value) and "\n" not in str(caught.value)
    # the same in everything that it says of itself, but for one weight
    copied = shutil.copy(made["gguf"], tmp_path / "copied.gguf")
    with opened(copied) as session:
        assert start_after(session, warmed.path, copied).origin == "shipped"
    data = bytearray(copied.read_bytes())
    data[-3] ^= 1
    copied.write_bytes(data)
    with opened(copied) as session, pytest.raises(InputError, match="weights or tokenizer"):
        start_after(session, warmed.path, copied)


def rewritten(warmed: Warmed, out: Path, **changes: object) -> Path:
    """The same prompt's file, changed, with the same state beside it."""
    record = json.loads(warmed.path.read_text()) | changes
    out.write_text(json.dumps(record))
    shutil.copy(warmed.state, out.with_name(out.name.replace(".json", ".state")))
    return out


def test_an_edited_prompt_is_refused(made: dict[str, Any], tmp_path: Path) -> None:
    warmed: Warmed = made["warm-gguf"]
    with opened(made["gguf"]) as session:
        for number, changes in enumerate(
            (
                {"messages": [{"role": "system", "content": "Be verbose."}]},
                {"ids": [*warmed.prompt.ids[:-1], 5]},
            )
        ):
            path = rewritten(warmed, tmp_path / f"{number}.warm.json", **changes)
            with pytest.raises(InputError, match="it was edited"):
                start_after(session, path, made["gguf"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kind": "other"}, "is no warm prompt"),
        ({"schema_version": 2}, "schema version 2"),
        ({"ids": []}, "ids"),
        ({"ids": ["x"]}, "ids"),
        ({"messages": [{"role": "system"}]}, "content' is missing"),
        ({"more": 1}, "more"),
    ],
)
def test_a_damaged_prompt_is_refused(
    made: dict[str, Any], tmp_path: Path, change: dict[str, object], says: str
) -> None:
    path = rewritten(made["warm-gguf"], tmp_path / "x.warm.json", **change)
    with opened(made["gguf"]) as session, pytest.raises(InputError, match=says):
        start_after(session, path, made["gguf"])


def test_what_is_no_file_of_that_kind_is_refused(made: dict[str, Any], tmp_path: Path) -> None:
    text, damaged = tmp_path / "x.txt", tmp_path / "x.warm.json"
    text.write_text("Be brief.")
    damaged.write_text("{")
    with opened(made["gguf"]) as session:
        with pytest.raises(InputError, match="does not exist"):
            start_after(session, tmp_path / "none.warm.json", made["gguf"])
        with pytest.raises(InputError, match=r"called NAME\.warm\.json"):
            start_after(session, text, made["gguf"])
        with pytest.raises(CorruptFileError):
            start_after(session, damaged, made["gguf"])


def without_state(warmed: Warmed, folder: Path) -> Path:
    return shutil.copy(warmed.path, folder / warmed.path.name)


@pytest.mark.parametrize("format", ["gguf", "onnx"])
def test_a_state_that_is_missing_is_computed_once(
    made: dict[str, Any], format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = without_state(made[f"warm-{format}"], tmp_path)
    with opened(made[format]) as session:
        start = start_after(session, path, made[format])
        assert start.origin == "computed"
        assert same(start, made[f"warm-{format}"])
    with opened(made[format]) as session:
        monkeypatch.setattr(session, "save_state", None)  # what computing needs
        again = start_after(session, path, made[format])
        assert again.origin == "kept"
        assert same(again, made[f"warm-{format}"])


@pytest.mark.parametrize(
    "setting", ["llama.cpp", "llama-cpp-python", "kv_cache", "flash_attention", "rope"]
)
def test_a_state_of_another_setting_is_computed_anew(
    made: dict[str, Any], setting: str, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(log, "propagate", True)
    caplog.set_level("INFO", logger="edgeadapt")
    with opened(made["gguf"]) as session:
        here = session.state_settings()
        assert here[setting]
        monkeypatch.setattr(session, "state_settings", lambda: here | {setting: "another"})
        start = start_after(session, made["warm-gguf"].path, made["gguf"])
        assert start.origin == "computed"
        assert same(start, made["warm-gguf"])
    assert f"with {setting} {here[setting]} (here another)" in caplog.text


def test_exact_and_usual_settings_have_states_of_their_own(made: dict[str, Any]) -> None:
    """float32 and float16 caches: the library itself would refuse one for the other."""
    warmed: Warmed = made["warm-gguf"]
    with opened(made["gguf"], exact=True) as session:
        start = start_after(session, warmed.path, made["gguf"])
        assert start.origin == "computed"
        assert len(start.state) > 1.5 * warmed.state_bytes
        assert same(start, warmed)


def test_a_state_that_the_engine_refuses_is_computed_anew(
    made: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where flash attention is chosen otherwise, which no setting tells."""
    usual = made["warm-gguf"]
    with opened(made["gguf"]) as session:
        settings = session.state_settings()
    with opened(made["gguf"], exact=True) as session:
        monkeypatch.setattr(session, "state_settings", lambda: settings)
        start = start_after(session, usual.path, made["gguf"])
        assert start.origin == "computed"
        assert same(start, usual)


def test_a_damaged_state_is_computed_anew(
    made: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(log, "propagate", True)
    caplog.set_level("INFO", logger="edgeadapt")
    warmed: Warmed = made["warm-gguf"]
    path = without_state(warmed, tmp_path)
    damaged = bytearray(warmed.state.read_bytes())
    damaged[-5] ^= 1
    (tmp_path / warmed.state.name).write_bytes(damaged)
    with opened(made["gguf"]) as session:
        start = start_after(session, path, made["gguf"])
        assert start.origin == "computed"
        assert same(start, warmed)
        assert kept_file(start_key(start)).is_file()
    assert "is damaged" in caplog.text


def start_key(start: WarmStart) -> Any:
    from edgeadapt.warm.start import state_key

    return state_key(start.prompt, start.session)


def test_one_that_leaves_no_room_is_refused(made: dict[str, Any]) -> None:
    with (
        opened(made["gguf"], context=32) as session,
        pytest.raises(InputError, match="raise --context"),
    ):
        start_after(session, made["warm-gguf"].path, made["gguf"])


def test_runtimes_that_keep_no_state_are_refused(made: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_genai")
    with pytest.raises(
        UnsupportedError, match=r"ort-genai cannot .* llama-cpp and onnxruntime can"
    ):
        open_here(made["onnx"], context=64, runtime="ort-genai", keeping=True)
    with pytest.raises(UnsupportedError, match="torch cannot"):
        make_warm(made["base"], made["prompt"], tmp_path / "x.warm.json")
    assert list(tmp_path.iterdir()) == []
    session = open_here(made["onnx"], context=64, runtime="ort-genai")
    try:
        for call in (session.save_state, lambda: session.restore_state(b"")):
            with pytest.raises(UnsupportedError):
                call()
    finally:
        session.close()


def test_files_that_are_there_stay(made: dict[str, Any], tmp_path: Path) -> None:
    warmed: Warmed = made["warm-gguf"]
    before = warmed.path.read_bytes(), warmed.state.read_bytes()
    with pytest.raises(InputError, match="exists already"):
        make_warm(made["gguf"], made["prompt"])
    assert (warmed.path.read_bytes(), warmed.state.read_bytes()) == before
    with pytest.raises(InputError, match=r"end --out with it"):
        make_warm(made["gguf"], made["prompt"], tmp_path / "x.json")
