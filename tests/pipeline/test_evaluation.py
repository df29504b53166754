"""What an artifact is measured against."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgeadapt.adapters import AdapterChoice
from edgeadapt.pipeline import stages
from edgeadapt.pipeline.evaluation import subject_of


def adapter(folder: Path, settings: object) -> AdapterChoice:
    folder.mkdir()
    (folder / "edgeadapt.json").write_text(json.dumps({"settings": settings}))
    return AdapterChoice(folder)


def test_conversations_begin_as_those_that_the_adapter_was_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text("{}")
    brief = adapter(tmp_path / "a", {"system": "Be brief."})
    other = adapter(tmp_path / "b", {"system": None})
    unknown = adapter(tmp_path / "c", "of another tool")
    assert subject_of(tmp_path, [brief]).system == "Be brief."
    assert subject_of(tmp_path, [brief, brief]).system == "Be brief."
    assert subject_of(tmp_path, [other, unknown]).system is None
    assert subject_of(tmp_path, []).system is None
    assert "different system prompts" not in capsys.readouterr().err
    assert subject_of(tmp_path, [brief, other]).system is None


def test_sample_questions_are_asked_under_the_system_prompt(
    tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    real = stages.sample

    def spy(path: Path, conversations: Any, **options: Any) -> Any:
        asked.extend(conversations)
        return real(path, conversations, **options)

    monkeypatch.setattr(stages, "sample", spy)
    for system in (None, "Be brief."):
        (answer,) = stages.answers_of(tiny_gguf, ["Why?"], 2, "tiny", "llama-cpp", system=system)
        assert answer["prompt"] == "Why?"
    why = {"role": "user", "content": "Why?"}
    assert asked == [[why], [{"role": "system", "content": "Be brief."}, why]]
