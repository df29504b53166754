"""From what the system tells and what was measured to a device profile."""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import yaml

from edgeadapt import __version__
from edgeadapt.console import log
from edgeadapt.cpu import read_text, this_cpu
from edgeadapt.detect.bandwidth import ReadBandwidth, measure_read_bandwidth
from edgeadapt.detect.cores import (
    CoreGroup,
    counted_cores,
    linux_cores,
    macos_cores,
    macos_isa,
    parse_cpu_list,
    parse_sysctl,
    profile_isa,
)
from edgeadapt.devices import DeviceProfile, parse_entry
from edgeadapt.errors import InputError
from edgeadapt.memory import total_memory
from edgeadapt.prediction.hardware import cpu_class

_ARCH: dict[str, Literal["x86_64", "aarch64"]] = {
    "x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64",
}  # fmt: skip
_BUSY = 0.1
"""Share of the CPU used by others from which a measurement is called disturbed."""
_SYS_CPU = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Machine:
    """What a machine's system tells of it."""

    cpu: str
    arch: Literal["x86_64", "aarch64"]
    os: str
    cores: tuple[CoreGroup, ...]
    isa: tuple[str, ...]
    ram_bytes: int
    governor: str | None
    board: str
    """Name of a single-board computer; empty on others."""
    gpu: dict[str, Any] | None


def detect_profile(name: str | None = None) -> DeviceProfile:
    """A profile of this machine; takes a second or two, as its memory is measured.

    Args:
        name: what to call it; from board or CPU if None.

    Raises:
        InputError: its architecture is neither x86-64 nor 64-bit Arm, or `name` is unusable.
    """
    machine = read_machine()
    busy = psutil.cpu_percent(interval=0.5) / 100
    if busy > _BUSY:
        log.warning(
            "other programs use %.0f%% of the CPU: the bandwidth will come out too low; stop them "
            "and detect again", 100 * busy,
        )  # fmt: skip
    cores = sum(group.count for group in machine.cores)
    return build_profile(machine, measure_read_bandwidth(cores), name)


def read_machine() -> Machine:
    """Ask the system.

    Raises:
        InputError: the architecture is neither x86-64 nor 64-bit Arm.
    """
    system, arch = platform.system(), _ARCH.get(platform.machine().lower())
    if arch is None:
        raise InputError(
            f"this machine is {platform.machine()}; profiles can be made of x86_64 and aarch64"
        )
    ram = total_memory()
    if system == "Darwin":
        text = subprocess.run(
            ["/usr/sbin/sysctl", "-a"], capture_output=True, text=True, check=False
        ).stdout
        return macos_machine(text, arch, ram, f"macOS {platform.mac_ver()[0]}")
    cpu = this_cpu()
    groups = _linux_groups(cpu.name) if system == "Linux" else []
    board = read_text("/proc/device-tree/model")
    return Machine(
        cpu=cpu.name,
        arch=arch,
        os=_os_name(system),
        cores=tuple(counted_cores(cpu.name, psutil.cpu_count(logical=False) or 1, groups)),
        isa=profile_isa(cpu.features),
        ram_bytes=ram,
        governor=read_text(f"{_SYS_CPU}/cpu0/cpufreq/scaling_governor") or None,
        board=board,
        gpu=linux_gpu(board, nvidia=Path("/dev/nvidia0").exists()),
    )


def macos_machine(
    sysctl: str, arch: Literal["x86_64", "aarch64"], ram_bytes: int, system: str
) -> Machine:
    """A Mac, from the text of `sysctl -a`."""
    values = parse_sysctl(sysctl)
    name = values.get("machdep.cpu.brand_string") or values.get("hw.model") or "Mac"
    metal = {
        "name": f"{name} GPU", "apis": ["metal"], "unified_memory": True, "layers": "all",
    }  # fmt: skip
    return Machine(
        cpu=name,
        arch=arch,
        os=system,
        cores=tuple(macos_cores(values, name=name)),
        isa=macos_isa(values),
        ram_bytes=int(values.get("hw.memsize") or ram_bytes),
        governor=None,
        board="",
        gpu=metal if arch == "aarch64" else None,
    )


def linux_gpu(board: str, *, nvidia: bool) -> dict[str, Any] | None:
    """A Jetson's GPU, which shares the memory; others are not looked for, as most serve a display.

    A discrete NVIDIA card is left to the user, who knows its memory.
    """
    if "jetson" in board.lower() or (nvidia and "orin" in board.lower()):
        return {
            "name": f"GPU of {board}", "apis": ["cuda"], "unified_memory": True, "layers": "all",
        }  # fmt: skip
    return None


def _linux_groups(name: str) -> list[CoreGroup]:
    clocks = {}
    for path in _SYS_CPU.glob("cpu[0-9]*/cpufreq/cpuinfo_max_freq"):
        text = read_text(str(path))
        if text.isdigit():
            clocks[int(path.parts[-3].removeprefix("cpu"))] = int(text)
    efficient = parse_cpu_list(read_text("/sys/devices/cpu_atom/cpus"))
    return linux_cores(read_text("/proc/cpuinfo"), clocks, name=name, efficient=efficient)


def _os_name(system: str) -> str:
    if system != "Linux":
        return f"{system} {platform.release()}"
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        return "Linux"


def build_profile(machine: Machine, read: ReadBandwidth, name: str | None) -> DeviceProfile:
    """The profile of a machine whose memory was measured; checked like any other.

    Raises:
        InputError: `name` is not made of small letters, digits and dashes.
    """
    slug = name or re.sub(r"[^a-z0-9]+", "-", (machine.board or machine.cpu).lower()).strip("-")
    return _checked(profile_data(machine, read, slug))


def profile_data(machine: Machine, read: ReadBandwidth, name: str) -> dict[str, Any]:
    """The profile as plain data, in the order that its file has."""
    fast = sum(group.count for group in machine.cores if not group.little)
    usual = cpu_class(f"{machine.cpu} {machine.board} {machine.cores[0].name}").gbps
    peak = max(usual, round(read.best, 1))
    note = (
        f"read by {read.threads} threads; one alone reads {read.one_thread:.1f}; "
        f"buffer {read.buffer_bytes >> 20} MiB"
    )
    cpu: dict[str, Any] = {
        "name": machine.cpu,
        "arch": machine.arch,
        "cores": [_core(group) for group in machine.cores],
        "isa": list(machine.isa),
        "isa_source": "detected",
    }
    if machine.governor:
        cpu["governor"] = machine.governor
    data: dict[str, Any] = {
        "name": name,
        "title": machine.board or machine.cpu,
        "soc": machine.cpu,
        "os": machine.os,
        "cpu": cpu,
        "memory": {
            "ram_gib": _found(round(machine.ram_bytes / 2**30, 2)),
            "peak_gbps": _guess(peak, "usual for its class, or what was read if that is more"),
            "read_gbps": _found(round(read.best, 1)) | {"note": note},
            "model_share": _guess(0.5, "our choice; raise it where nothing else runs"),
        },
    }
    if machine.gpu is not None:
        data["gpu"] = machine.gpu
    data["threads"] = _found(fast) | {"note": "one for each fast core"}
    data["context"] = _guess(4096, "our choice")
    data["runtimes"] = _runtimes(machine)
    data["sources"] = {"detected": f"edgeadapt {__version__} devices detect, on the machine itself"}
    return data


def _found(value: float) -> dict[str, Any]:
    return {"value": value, "source": "detected"}


def _guess(value: float, note: str) -> dict[str, Any]:
    return {"value": value, "estimate": True, "note": note}


def _core(group: CoreGroup) -> dict[str, Any]:
    core: dict[str, Any] = {"name": group.name, "count": _found(group.count)}
    if group.ghz:
        core["ghz"] = _found(group.ghz)
    if group.little:
        core["little"] = True
    return core


def _runtimes(machine: Machine) -> list[dict[str, Any]]:
    gguf = [
        {"name": "Q4_K_M", "reason": "about 4.8 bits a weight at little loss"},
        {"name": "Q4_0", "reason": "the smallest file, when Q4_K_M does not fit"},
        {"name": "Q6_K", "reason": "where memory allows, close to lossless"},
        {"name": "Q8_0", "reason": "for small models, as good as lossless"},
    ]
    cpu = {
        "name": "llama-cpp", "format": "gguf", "quantizations": gguf,
        "reason": "one file to hand over, and 4-bit kernels for this CPU",
    }  # fmt: skip
    gpu = [cpu | {"backend": "gpu", "reason": "the GPU reads weights faster than the CPU"}]
    onnx = {
        "name": "ort-genai", "format": "onnx", "reason": "for apps that embed ONNX Runtime",
        "quantizations": [{"name": "int4", "reason": "4-bit blocks, the smallest ONNX type here"}],
    }  # fmt: skip
    return [*(gpu if machine.gpu else []), cpu, onnx]


def _checked(data: dict[str, Any]) -> DeviceProfile:
    entry = parse_entry(yaml.safe_dump(data, sort_keys=False), f"profile {data['name']}")
    assert isinstance(entry, DeviceProfile)
    return entry


def profile_yaml(profile: DeviceProfile) -> str:
    """A profile as the text of its file: only what is said, figures on a line of their own."""
    data = _whole(profile.model_dump(mode="json", exclude_defaults=True))
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=96)


def _whole(value: Any) -> Any:
    """Whole numbers without a decimal point, all the way down."""
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


class _Dumper(yaml.SafeDumper):
    """Writes figures in one line, all else in blocks."""


def _mapping(dumper: yaml.SafeDumper, data: dict[str, Any]) -> yaml.MappingNode:
    flow = "value" in data
    return dumper.represent_mapping("tag:yaml.org,2002:map", data.items(), flow_style=flow)


def _sequence(dumper: yaml.SafeDumper, data: Sequence[Any]) -> yaml.SequenceNode:
    plain = not any(isinstance(item, dict) for item in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=plain)


_Dumper.add_representer(dict, _mapping)
_Dumper.add_representer(list, _sequence)
