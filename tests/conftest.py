"""Shared set-up: no test reaches a network, and each has a cache folder of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# A shell that starts tests in the background lets them, and all that they start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("edgeadapt", deadline=None)  # no test fails for being slow
settings.load_profile("edgeadapt")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep together, where workers share the tests, those that share what takes long to make."""
    for item in items:
        fixtures: list[str] = getattr(item, "fixturenames", [])
        shared = next((name for name in ("run", "world") if name in fixtures), None)
        item.add_marker(pytest.mark.xdist_group(shared or str(item.path)))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep what a test caches out of the user's cache, and out of other tests."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("EDGEADAPT_CACHE", str(folder))
    return folder


@pytest.fixture
def memory_limit() -> Iterator[Callable[[int], list[str]]]:
    """Given a number of bytes, the start of a command line that may hold no more in memory.

    The page cache of what it reads counts, as it does on a board with so much memory.
    """
    v1 = Path("/sys/fs/cgroup/memory")
    group = (v1 if v1.is_dir() else Path("/sys/fs/cgroup")) / f"edgeadapt-test-{os.getpid()}"
    limit = group / ("memory.limit_in_bytes" if v1.is_dir() else "memory.max")
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")

    def limited(size: int) -> list[str]:
        limit.write_text(str(size))
        return ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"]

    try:
        if not limit.exists():
            pytest.skip("the memory controller is not given to this control group")
        yield limited
    finally:
        for _ in range(50):  # until what ran in it has been reaped
            with contextlib.suppress(OSError):
                group.rmdir()
                break
            time.sleep(0.1)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama as a Hugging Face folder; not to be changed."""
    from tests.tiny import save_llama

    return save_llama(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny_gguf(tiny_model: Path) -> Path:
    """The same model as an F32 GGUF file; not to be changed."""
    pytest.importorskip("llama_cpp")
    from edgeadapt.converters.base import ConversionRequest
    from edgeadapt.converters.gguf.converter import GgufConverter
    from edgeadapt.safetensors_io import SafetensorsSource

    request = ConversionRequest(SafetensorsSource(tiny_model), tiny_model, "F32", "tiny", threads=2)
    return GgufConverter().convert(request, tiny_model.parent / "tiny.gguf").path
