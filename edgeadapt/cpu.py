"""What the operating system says of the CPU."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class Cpu:
    """What the operating system says of the CPU."""

    machine: str
    """`x86_64`, `aarch64`, ... as `platform.machine()` says."""
    name: str
    """Empty where the text does not say."""
    features: frozenset[str]
    """Names that every core lists in /proc/cpuinfo; empty where there is no such file."""


def usable_cpus() -> int:
    """Logical CPUs that this process may use; all of them where the system has no such mask."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def this_cpu() -> Cpu:
    """The CPU that runs this."""
    cpu = parse_cpuinfo(read_text("/proc/cpuinfo"), platform.machine())
    return cpu if cpu.name else replace(cpu, name=_board() or platform.processor() or cpu.machine)


def _board() -> str:
    return read_text("/proc/device-tree/model")


def read_text(path: str) -> str:
    """A file of the system in one string, without padding; empty where it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return ""


def parse_cpuinfo(text: str, machine: str) -> Cpu:
    """Read /proc/cpuinfo, in its x86 (`flags`) or its Arm (`Features`) form.

    Cores of one chip can differ; only what all of them have counts, since threads move.
    """
    name = ""
    common: frozenset[str] | None = None
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key in ("model name", "Model", "Hardware") and not name:
            name = value
        elif key in ("flags", "Features"):
            found = frozenset(value.split())
            common = found if common is None else common & found
    return Cpu(machine, name, common or frozenset())
