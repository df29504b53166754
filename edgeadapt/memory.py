"""How much memory the system lets a process have, in bytes: of the machine, or of a container.

A control group's limit does not show in what the machine says of itself. Its files: the kernel's
admin-guide/cgroup-v2.rst and admin-guide/cgroup-v1/memory.rst.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from edgeadapt.cpu import read_text

_MOUNT = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class _Files:
    """Names in the folder of a group."""

    limit: str
    usage: str
    reclaimable: str
    """In `memory.stat`: page cache that was not used lately, which gives way to others."""


_V1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Files("memory.max", "memory.current", "inactive_file")


def total_memory() -> int:
    """What there is."""
    machine = psutil.virtual_memory().total
    return min([machine, *(limit for limit, _ in _limits())])


def available_memory() -> int:
    """What can be taken without anything being swapped out or killed."""
    machine = psutil.virtual_memory().available
    return max(0, min([machine, *(limit - used for limit, used in _limits())]))


def _limits() -> Iterator[tuple[int, int]]:
    """Limit and use of each control group that this process is in, where there is a limit."""
    for line in read_text("/proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            yield from _of_group(_MOUNT, path, _V2)
        elif "memory" in controllers.split(","):
            yield from _of_group(_MOUNT / "memory", path, _V1)


def _of_group(mount: Path, path: str, files: _Files) -> Iterator[tuple[int, int]]:
    """Of a group and those around it; in a container its own lies at the mount."""
    group = mount / path.lstrip("/")
    for folder in (group, *group.parents):
        if not folder.is_relative_to(mount):
            return
        limit, usage = read_text(str(folder / files.limit)), read_text(str(folder / files.usage))
        if limit.isdigit() and usage.isdigit():  # else "max", or no such group
            stat = dict(
                line.split(maxsplit=1)
                for line in read_text(str(folder / "memory.stat")).splitlines()
            )
            yield int(limit), int(usage) - int(stat.get(files.reclaimable, 0))
