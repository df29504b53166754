"""What machine this is, as far as it matters to a benchmark."""

from __future__ import annotations

import platform

import psutil

from edgeadapt.bench.measurement import Machine
from edgeadapt.cpu import read_text, this_cpu, usable_cpus
from edgeadapt.memory import total_memory

_ISA = (
    "sse4_2", "avx", "avx2", "fma", "f16c", "bmi2", "avx_vnni", "avx512f", "avx512bw",
    "avx512vbmi", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve", "sve2", "sme",
)  # fmt: skip
"""Names as the kernel writes them in /proc/cpuinfo (`flags` on x86, `Features` on Arm)."""


def this_machine(*, watch_s: float = 0.0) -> Machine:
    """Describe the machine that this runs on.

    Args:
        watch_s: seconds to watch how busy it is; 0 leaves that unknown and returns at once.
    """
    cpu = this_cpu()
    return Machine(
        cpu=cpu.name,
        isa=tuple(name for name in _ISA if name in cpu.features),
        physical_cores=psutil.cpu_count(logical=False),
        available_cores=usable_cpus(),
        memory_bytes=total_memory(),
        os=platform.platform(),
        governor=read_text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or None,
        busy=psutil.cpu_percent(interval=watch_s) / 100 if watch_s > 0 else None,
    )
