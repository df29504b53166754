"""What the operating system says of the CPU."""

from __future__ import annotations

import ctypes
import os
import platform
from dataclasses import dataclass, replace
from pathlib import Path

_AT_HWCAP, _AT_HWCAP2 = 16, 26
"""Of the auxiliary vector, include/uapi/linux/auxvec.h in Linux."""
_ARM_BITS = (
    {0: "fp", 1: "asimd", 9: "fphp", 10: "asimdhp", 20: "asimddp", 22: "sve"},
    {1: "sve2", 13: "i8mm", 14: "bf16", 23: "sme"},
)
"""Bits of HWCAP and HWCAP2 -> names in /proc/cpuinfo; arch/arm64/include/uapi/asm/hwcap.h."""


@dataclass(frozen=True)
class Cpu:
    """What the operating system says of the CPU."""

    machine: str
    """`x86_64`, `aarch64`, ... as `platform.machine()` says."""
    name: str
    """Empty where the text does not say."""
    features: frozenset[str]
    """Names as in /proc/cpuinfo, of what every core has; empty where the system does not tell."""


def usable_cpus() -> int:
    """Logical CPUs that this process may use; all of them where the system has no such mask."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def this_cpu() -> Cpu:
    """The CPU that runs this."""
    cpu = parse_cpuinfo(read_text("/proc/cpuinfo"), platform.machine())
    if cpu.machine == "aarch64" and (features := arm_features(*_hardware_capabilities())):
        cpu = replace(cpu, features=features)
    return cpu if cpu.name else replace(cpu, name=_board() or platform.processor() or cpu.machine)


def arm_features(hwcap: int, hwcap2: int) -> frozenset[str]:
    """Names of what the kernel, or an emulator, tells each 64-bit Arm program that it may use.

    /proc/cpuinfo lists the same on a board; below an emulator it is the emulating machine's.
    """
    found = (
        name
        for bits, names in zip((hwcap, hwcap2), _ARM_BITS, strict=True)
        for bit, name in names.items()
        if bits >> bit & 1
    )
    return frozenset(found)


def _hardware_capabilities() -> tuple[int, int]:
    try:
        getauxval = ctypes.CDLL(None).getauxval
    except (AttributeError, OSError, TypeError):  # not Linux's C library
        return 0, 0
    getauxval.argtypes, getauxval.restype = [ctypes.c_ulong], ctypes.c_ulong
    return getauxval(_AT_HWCAP), getauxval(_AT_HWCAP2)


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
