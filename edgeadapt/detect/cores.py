"""CPU cores by kind and their instruction sets, from what Linux and macOS tell.

The functions take the system's text, so that each is tested on texts of other machines.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_ARM_PARTS = {
    (0x41, 0xD03): "Cortex-A53", (0x41, 0xD04): "Cortex-A35", (0x41, 0xD05): "Cortex-A55",
    (0x41, 0xD07): "Cortex-A57", (0x41, 0xD08): "Cortex-A72", (0x41, 0xD09): "Cortex-A73",
    (0x41, 0xD0A): "Cortex-A75", (0x41, 0xD0B): "Cortex-A76", (0x41, 0xD0C): "Neoverse-N1",
    (0x41, 0xD0D): "Cortex-A77", (0x41, 0xD40): "Neoverse-V1", (0x41, 0xD41): "Cortex-A78",
    (0x41, 0xD42): "Cortex-A78AE", (0x41, 0xD44): "Cortex-X1", (0x41, 0xD46): "Cortex-A510",
    (0x41, 0xD47): "Cortex-A710", (0x41, 0xD48): "Cortex-X2", (0x41, 0xD49): "Neoverse-N2",
    (0x41, 0xD4B): "Cortex-A78C", (0x41, 0xD4D): "Cortex-A715", (0x41, 0xD4E): "Cortex-X3",
    (0x41, 0xD4F): "Neoverse-V2", (0x41, 0xD80): "Cortex-A520", (0x41, 0xD81): "Cortex-A720",
    (0x41, 0xD82): "Cortex-X4", (0x41, 0xD85): "Cortex-X925", (0x41, 0xD87): "Cortex-A725",
    (0x51, 0x001): "Oryon", (0x51, 0x802): "Kryo 385 Gold", (0x51, 0x803): "Kryo 385 Silver",
    (0x51, 0x804): "Kryo 485 Gold", (0x51, 0x805): "Kryo 485 Silver",
}  # fmt: skip
"""Implementer and part number of the MIDR register, as /proc/cpuinfo shows them."""

_LITTLE = re.compile(r"Cortex-A(35|53|55|510|520)\b|Silver")

_ISA = {
    "asimd": "neon", "asimdhp": "fp16", "asimddp": "dotprod", "i8mm": "i8mm", "bf16": "bf16",
    "sve": "sve", "sve2": "sve2", "sme": "sme", "avx2": "avx2", "fma": "fma", "f16c": "f16c",
    "bmi2": "bmi2", "avx_vnni": "avx_vnni", "avx512f": "avx512f", "avx512_vnni": "avx512_vnni",
    "avx512_bf16": "avx512_bf16",
}  # fmt: skip
"""Names in /proc/cpuinfo -> names in profiles, the order of profiles."""

_MACOS_ISA = {
    "hw.optional.neon": "neon", "hw.optional.AdvSIMD": "neon", "hw.optional.arm.FEAT_FP16": "fp16",
    "hw.optional.arm.FEAT_DotProd": "dotprod", "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_BF16": "bf16", "hw.optional.arm.FEAT_SME": "sme",
    "hw.optional.avx2_0": "avx2", "hw.optional.fma": "fma", "hw.optional.f16c": "f16c",
    "hw.optional.bmi2": "bmi2", "hw.optional.avx512f": "avx512f",
    "hw.optional.avx512vnni": "avx512_vnni",
}  # fmt: skip


@dataclass(frozen=True)
class CoreGroup:
    """Cores of one kind."""

    name: str
    count: int
    ghz: float | None
    """Highest clock; None where the system does not tell."""
    little: bool


def profile_isa(features: frozenset[str]) -> tuple[str, ...]:
    """Instruction sets of /proc/cpuinfo by the names that profiles use."""
    return tuple(name for feature, name in _ISA.items() if feature in features)


def parse_cpu_list(text: str) -> frozenset[int]:
    """CPU numbers of a list as Linux writes it: `0-3,8`."""
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def linux_cores(
    cpuinfo: str,
    max_khz: Mapping[int, int],
    *,
    name: str,
    efficient: frozenset[int] = frozenset(),
) -> list[CoreGroup]:
    """Groups of cores, fastest first, from /proc/cpuinfo.

    Args:
        cpuinfo: the whole file, of x86 or Arm.
        max_khz: CPU number -> cpufreq's highest clock; may be empty.
        name: what to call cores that tell no name of their own.
        efficient: CPU numbers that an x86 system lists as efficiency cores.
    """
    groups: Counter[tuple[str, float | None, bool]] = Counter()
    seen: set[tuple[str, str]] = set()
    for number, fields in _blocks(cpuinfo):
        core = (fields.get("physical id", ""), fields.get("core id", ""))
        if core[1] and core in seen:
            continue  # the second thread of a core
        seen.add(core)
        kind = _arm_name(fields) or name
        small = number in efficient
        little = small or bool(_LITTLE.search(kind))
        ghz = round(max_khz[number] / 1e6, 2) if number in max_khz else None
        groups[f"{kind}, efficiency" if small else kind, ghz, little] += 1
    return _fastest_first(groups)


def _blocks(cpuinfo: str) -> list[tuple[int, dict[str, str]]]:
    blocks: list[tuple[int, dict[str, str]]] = []
    for line in cpuinfo.splitlines():
        key, colon, value = (part.strip() for part in line.partition(":"))
        if key == "processor" and value.isdigit():
            blocks.append((int(value), {}))
        elif colon and blocks:
            blocks[-1][1].setdefault(key, value)
    return blocks


def _arm_name(fields: Mapping[str, str]) -> str | None:
    try:
        part = int(fields["CPU implementer"], 16), int(fields["CPU part"], 16)
    except (KeyError, ValueError):
        return None
    return _ARM_PARTS.get(part, f"Arm part {part[1]:#x}")


def _fastest_first(groups: Counter[tuple[str, float | None, bool]]) -> list[CoreGroup]:
    found = [CoreGroup(name, count, ghz, little) for (name, ghz, little), count in groups.items()]
    return sorted(found, key=lambda group: (group.little, -(group.ghz or 0.0)))


def parse_sysctl(text: str) -> dict[str, str]:
    """Keys and values of macOS's `sysctl` output."""
    pairs = (line.partition(":") for line in text.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}


def macos_cores(values: Mapping[str, str], *, name: str) -> list[CoreGroup]:
    """Groups of cores from sysctl: Apple's performance levels, or an Intel Mac's only kind."""
    levels: list[CoreGroup] = []
    for level in range(int(values.get("hw.nperflevels") or 0)):
        count = int(values.get(f"hw.perflevel{level}.physicalcpu") or 0)
        kind = values.get(f"hw.perflevel{level}.name") or f"level {level}"
        if count:
            levels.append(CoreGroup(f"{name}, {kind.lower()}", count, None, level > 0))
    if levels:
        return levels
    hertz = values.get("hw.cpufrequency_max") or values.get("hw.cpufrequency") or "0"
    ghz = round(int(hertz) / 1e9, 2) or None
    return [CoreGroup(name, int(values.get("hw.physicalcpu") or 1), ghz, False)]


def macos_isa(values: Mapping[str, str]) -> tuple[str, ...]:
    """Instruction sets that macOS lists, by the names that profiles use."""
    found = (name for key, name in _MACOS_ISA.items() if values.get(key) == "1")
    return tuple(dict.fromkeys(found))


def counted_cores(name: str, physical: int, groups: Sequence[CoreGroup]) -> list[CoreGroup]:
    """`groups`, or one of `physical` cores where the system tells nothing."""
    return list(groups) or [CoreGroup(name, max(physical, 1), None, False)]
