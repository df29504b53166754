"""What machine this is, as far as it matters to a benchmark."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import psutil

from edgeadapt.bench.measurement import Machine

_ISA = (
    "sse4_2", "avx", "avx2", "fma", "f16c", "bmi2", "avx_vnni", "avx512f", "avx512bw",
    "avx512_vbmi", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve", "sve2", "sme",
)  # fmt: skip
"""Names as the kernel writes them in /proc/cpuinfo (`flags` on x86, `Features` on Arm)."""


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace").strip("\0\n ")
    except OSError:
        return ""


def cpu_name(cpuinfo: str) -> str:
    """The CPU's name from the text of /proc/cpuinfo, the board's name where it has none."""
    match = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    if match:
        return match[1].strip()
    return _read("/proc/device-tree/model") or platform.processor() or platform.machine()


def cpu_flags(cpuinfo: str) -> tuple[str, ...]:
    """The flags among those that matter to matrix kernels, from the text of /proc/cpuinfo."""
    match = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    present = set(match[1].split()) if match else set()
    return tuple(flag for flag in _ISA if flag in present)


def this_machine(*, watch_s: float = 0.0) -> Machine:
    """Describe the machine that this runs on.

    Args:
        watch_s: seconds to watch how busy it is; 0 leaves that unknown and returns at once.
    """
    cpuinfo = _read("/proc/cpuinfo")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Machine(
        cpu=cpu_name(cpuinfo),
        isa=cpu_flags(cpuinfo),
        physical_cores=psutil.cpu_count(logical=False),
        available_cores=cores or 1,
        memory_bytes=psutil.virtual_memory().total,
        os=platform.platform(),
        governor=_read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or None,
        busy=psutil.cpu_percent(interval=watch_s) / 100 if watch_s > 0 else None,
    )
