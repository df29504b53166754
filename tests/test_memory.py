"""The memory that a process may have, in a control group and out of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from edgeadapt import memory

_GIB = 1 << 30


def test_a_limit_of_the_control_group_counts(memory_limit: Callable[[int], list[str]]) -> None:
    program = (
        "from edgeadapt.memory import available_memory, total_memory\n"
        "print(total_memory(), available_memory(), sep='\\n')"
    )
    done = subprocess.run(
        [*memory_limit(512 << 20), sys.executable, "-c", program],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    total, available = map(int, done.stdout.split())
    assert total == min(512 << 20, psutil.virtual_memory().total)
    assert 256 << 20 < available < total


def test_without_a_limit_it_is_the_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_MOUNT", tmp_path)
    assert memory.total_memory() == psutil.virtual_memory().total
    assert abs(memory.available_memory() - psutil.virtual_memory().available) < _GIB


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        ("0::/outside/of/the/container", {"memory.max": "3000", "memory.current": "1000"}),
        (
            "4:cpu,memory:/job/7\n0::/",
            {
                "memory/memory.limit_in_bytes": "3000", "memory/memory.usage_in_bytes": "1000",
                "memory/job/7/memory.limit_in_bytes": "9223372036854771712",
                "memory/job/7/memory.usage_in_bytes": "900",
            },
        ),
        ("0::/job", {"memory.max": "max", "memory.current": "7", "job/memory.max": "3000",
                     "job/memory.current": "1000"}),
    ],
    ids=["at the mount of a container", "of an outer group", "beside none"],
)  # fmt: skip
def test_the_tightest_of_nested_groups_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: str, files: dict[str, str]
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    real = memory.read_text
    monkeypatch.setattr(memory, "_MOUNT", tmp_path)
    monkeypatch.setattr(
        memory, "read_text", lambda path: groups if path == "/proc/self/cgroup" else real(path)
    )
    assert memory.total_memory() == 3000
    assert memory.available_memory() == 2000


def test_page_cache_that_gives_way_is_available(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = memory.read_text
    monkeypatch.setattr(memory, "_MOUNT", tmp_path)
    monkeypatch.setattr(
        memory, "read_text", lambda path: "0::/" if path == "/proc/self/cgroup" else real(path)
    )
    (tmp_path / "memory.max").write_text("3000\n")
    (tmp_path / "memory.current").write_text("2500\n")
    (tmp_path / "memory.stat").write_text("anon 1000\ninactive_file 1200\nactive_file 300\n")
    assert memory.available_memory() == 1700
