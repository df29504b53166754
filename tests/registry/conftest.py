"""A registry server for all tests, which each get a repository of their own in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bundle.conftest import (
    artifact_entry,
    bundle,
    made,
    run_base,
    run_folder,
    write_run,
)
from tests.registry.oci_server import OciServer, oci_server

__all__ = ["bundle", "made", "run_base", "run_folder"]


@pytest.fixture(scope="session")
def running_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OciServer]:
    with oci_server(tmp_path_factory.mktemp("oci")) as server:
        yield server


@pytest.fixture
def server(running_server: OciServer) -> Iterator[OciServer]:
    yield running_server
    running_server.link.cuts.clear()
    running_server.link.cuts_down.clear()


@pytest.fixture
def reference(server: OciServer, tmp_path: Path) -> str:
    """A tag in a repository that no other test uses."""
    return f"oci://{server.host}/tests/{tmp_path.name.lower().replace('_', '-')}:v1"


@pytest.fixture(scope="session")
def newer_run(run_folder: Path, run_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run again, with other answers: the model is the same, the card is not."""
    entry = artifact_entry(run_folder / "tiny-F32.gguf")
    samples = [{"prompt": "Where is the fox?", "answers": {"F32 on llama-cpp": "Gone."}}]
    return write_run(tmp_path_factory.mktemp("newer"), run_base, [entry], samples=samples)


@pytest.fixture(autouse=True)
def no_logins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may be logged in somewhere."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DOCKER_CONFIG", raising=False)
