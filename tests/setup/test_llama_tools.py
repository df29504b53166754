"""llama.cpp's own programs: found where they were built for the installed library, or named."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeadapt.errors import MissingSetupError
from edgeadapt.setup import llama_tools

pytest.importorskip("llama_cpp")


def test_programs_that_are_not_built_are_named(own_cache: Path) -> None:
    with pytest.raises(MissingSetupError, match="edgeadapt setup llama-tools"):
        llama_tools.installed_tool("llama-bench")


def test_they_are_kept_under_the_libraries_that_they_belong_to(
    own_cache: Path, tmp_path: Path
) -> None:
    (tmp_path / "libllama.so").write_bytes(b"one")
    first = llama_tools._folder(tmp_path)
    assert llama_tools._folder(tmp_path) == first
    (tmp_path / "libllama.so").write_bytes(b"two")
    assert llama_tools._folder(tmp_path) != first
    assert first.is_relative_to(own_cache)


def test_what_starts_is_kept_and_not_built(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("nothing is to be built")

    monkeypatch.setattr(llama_tools, "_build", refuse)
    folder = llama_tools._folder(llama_tools._library_folder())
    folder.mkdir(parents=True)
    for name in llama_tools.TOOLS:
        (folder / name).write_text("#!/bin/sh\nexit 0\n")
        (folder / name).chmod(0o755)
    result = llama_tools.setup_llama_tools()
    assert result.action == "kept"
    assert llama_tools.installed_tool("llama-bench") == Path(result.tools["llama-bench"])
    (folder / "llama-bench").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(AssertionError, match="nothing is to be built"):
        llama_tools.setup_llama_tools()


def test_without_cmake_it_says_what_to_type(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_tools.shutil, "which", lambda name: None)
    monkeypatch.setattr(llama_tools.build, "check_compilers", lambda: None)
    with pytest.raises(MissingSetupError, match="pip install cmake"):
        llama_tools.setup_llama_tools()
