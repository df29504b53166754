"""Seconds a token, from bytes, bandwidth, cores and instruction set.

The formulas leave factors open: which share of the peak bandwidth cores reach, how many weights
they unpack in a cycle. Each factor is a product of a common value and of what is particular to a
core class, a runtime, a kind of weights, all as logarithms that the caller provides by name:
`cpu.share`, `cpu.share/family=a76`. A name that no measurement speaks of has its prior's mean and
spread, so the same formulas serve a device never seen, with a wider interval.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from edgeadapt.prediction.hardware import Hardware
from edgeadapt.prediction.workload import Workload

Lookup = Callable[[str], float]
"""The logarithm that goes by a name."""

PRIORS: dict[str, tuple[float, float]] = {
    # Decode on CPU cores: share of the peak that streaming reaches, weights unpacked for each
    # 128-bit vector, ms that a token costs whatever its size. Where reading was measured on the
    # machine itself, weights are read at `reads` of that.
    "cpu.share": (math.log(0.6), 0.2),
    "cpu.reads": (math.log(0.9), 0.12),
    "cpu.wide": (math.log(0.25), 0.5),
    "cpu.share/family": (0.0, 0.45),
    "cpu.share/runtime": (0.0, 0.15),
    "cpu.share/kernel": (0.0, 0.08),
    "cpu.rate": (math.log(1.5), 0.4),
    "cpu.rate/family": (0.0, 0.2),
    "cpu.rate/runtime": (0.0, 0.4),
    "cpu.rate/kernel": (0.0, 0.3),
    "cpu.fixed": (math.log(0.5), 0.7),
    "cpu.crowd": (math.log(0.25), 0.5),
    "cpu.kv": (math.log(1.5), 0.5),
    "cpu.speed/runtime@family": (0.0, 0.1),
    # Decode on accelerators: all of it streaming, and launches.
    "gpu.share": (math.log(0.65), 0.3),
    "gpu.share/family": (0.0, 0.3),
    "gpu.share/runtime": (0.0, 0.3),
    "gpu.share/kernel": (0.0, 0.15),
    "gpu.fixed": (math.log(4.0), 0.7),
    "gpu.fixed/family": (0.0, 0.7),
    "gpu.kv": (math.log(1.3), 0.5),
    "npu.share": (math.log(0.5), 0.4),
    "npu.share/family": (0.0, 0.5),
    "npu.share/runtime": (0.0, 0.3),
    "npu.share/kernel": (0.0, 0.3),
    "npu.fixed": (math.log(4.0), 0.7),
    "npu.fixed/family": (0.0, 0.7),
    "npu.kv": (math.log(1.3), 0.5),
    # Prompts: part of the SIMD peak on cores; on accelerators multiply-adds for each byte of
    # bandwidth, a balance that chips keep because both serve the same work.
    "cpu.macs": (math.log(0.1), 0.5),
    "cpu.macs/family": (0.0, 0.4),
    "cpu.macs/runtime": (0.0, 0.5),
    "cpu.macs/kernel": (0.0, 0.4),
    "gpu.macs": (math.log(13), 0.5),
    "gpu.macs/family": (0.0, 0.45),
    "gpu.macs/runtime": (0.0, 0.4),
    "gpu.macs/kernel": (0.0, 0.3),
    "npu.macs": (math.log(13), 0.6),
    "npu.macs/family": (0.0, 0.6),
    "npu.macs/runtime": (0.0, 0.4),
    "npu.macs/kernel": (0.0, 0.3),
    # A bandwidth that is only usual for the class.
    "bandwidth/of": (0.0, 0.25),
}
"""Name up to `=`, and mean and standard deviation of its logarithm before any measurement."""

_WIDE_GBPS = 40.0
"""Bandwidth from which cores reach less of a wider memory: their clusters' ports are narrower, as
those memories are made for the GPU beside them."""
_SHARPNESS = 3.0
"""How sharply the slower of computing and reading takes over; 1 would add them, infinity take the
larger. Cores prefetch while they compute, though not perfectly."""


def runtime_key(text: str) -> str:
    """What a runtime's measurements have in common, from how a table names it."""
    name = text.lower()
    for key, pattern in (
        ("ik_llama.cpp", r"ik_llama"), ("ollama", r"ollama"), ("lm-studio", r"lm ?studio"),
        ("mnn", r"\bmnn"), ("t-mac", r"t-?mac"), ("llamafile", r"llamafile"),
        ("ort-genai", r"ort-genai|onnx ?runtime|\bort\b"), ("openvino", r"openvino"),
        ("rkllm", r"rkllm"), ("qnn", r"qnn|genie\b"), ("hexagon-ggml", r"htp|hexagon"),
        ("fastflow", r"fastflow"), ("tensorrt", r"tensorrt|trt"), ("mlc", r"\bmlc"),
        ("executorch", r"executorch"),
    ):  # fmt: skip
        if re.search(pattern, name):
            return key
    if re.search(r"llama[._-]?cpp|llama-bench|llama\.rn|pocketpal", name):
        # Kernels that interleave rows for Arm and AVX2 came in the second half of 2024.
        return "llama.cpp-2024" if re.search(r"202[34]", name) else "llama.cpp"
    return "other"


def decode_log_speed(
    hardware: Hardware, workload: Workload, runtime: str, threads: int | None, get: Lookup
) -> float:
    """Natural logarithm of decoded tokens a second."""
    kind = hardware.backend
    share = get(f"{kind}.share") + get(f"{kind}.share/family={hardware.family}")
    share += get(f"{kind}.share/runtime={runtime}") + get(f"{kind}.share/kernel={workload.kernel}")
    if kind == "cpu":
        share -= math.exp(get("cpu.wide")) * math.log(hardware.peak_gbps / _WIDE_GBPS)
    if kind == "cpu" and hardware.read_gbps is not None:
        stream = hardware.read_gbps * 1e9 * math.exp(get("cpu.reads"))
    else:
        stream = hardware.peak_gbps * 1e9 * math.exp(share + _bandwidth(hardware, get))
    kv = workload.kv_bytes * math.exp(get(f"{kind}.kv")) if workload.kv_bytes else 0.0
    reading = (workload.read_bytes + kv) / stream
    if kind != "cpu":
        fixed = get(f"{kind}.fixed") + get(f"{kind}.fixed/family={hardware.family}")
        return -math.log(reading + 1e-3 * math.exp(fixed))
    count = threads or _usual_threads(hardware, runtime)
    rate = get("cpu.rate") + get(f"cpu.rate/family={hardware.family}")
    rate += get(f"cpu.rate/runtime={runtime}") + get(f"cpu.rate/kernel={workload.kernel}")
    cores = _cores(hardware, count)
    cycles = min(count, cores) * hardware.ghz * 1e9
    computing = workload.active / (cycles * hardware.vectors * math.exp(rate))
    busy = (reading**_SHARPNESS + computing**_SHARPNESS) ** (1 / _SHARPNESS)
    seconds = busy + 1e-3 * math.exp(get("cpu.fixed"))
    return (
        -math.log(seconds)
        - _crowding(count, cores, get)
        + get(f"cpu.speed/runtime@family={runtime}@{hardware.family}")
    )


def prefill_log_speed(
    hardware: Hardware,
    workload: Workload,
    runtime: str,
    threads: int | None,
    tokens: int,
    get: Lookup,
) -> float:
    """Natural logarithm of prompt tokens a second, for a prompt of `tokens`.

    Computing bounds it; the weights are read once for the whole prompt.
    """
    kind = hardware.backend
    macs = get(f"{kind}.macs") + get(f"{kind}.macs/family={hardware.family}")
    macs += get(f"{kind}.macs/runtime={runtime}") + get(f"{kind}.macs/kernel={workload.kernel}")
    if kind == "cpu":
        count = threads or _usual_threads(hardware, runtime)
        cores = min(count, _cores(hardware, count))
        rate = cores * hardware.ghz * 1e9 * hardware.simd * math.exp(macs)
    else:
        rate = hardware.peak_gbps * 1e9 * math.exp(macs + _bandwidth(hardware, get))
    reading = workload.read_bytes / (0.6 * hardware.peak_gbps * 1e9)
    return -math.log(workload.active / rate + reading / max(tokens, 1))


def _bandwidth(hardware: Hardware, get: Lookup) -> float:
    if hardware.bandwidth_known:
        return 0.0
    return get(f"bandwidth/of={hardware.basis or hardware.family}")


def _cores(hardware: Hardware, threads: int) -> int:
    """Fast cores. Of a chip known by its class alone, at least half of the threads that someone
    used: two run on each core of most x86 chips."""
    return hardware.cores if hardware.cores_known else max(hardware.cores, (threads + 1) // 2)


def _usual_threads(hardware: Hardware, runtime: str) -> int:
    """Threads when none are asked for: ONNX Runtime takes every core, others the fast ones."""
    return max(hardware.cores, hardware.all_cores if runtime == "ort-genai" else 0)


def _crowding(threads: int, cores: int, get: Lookup) -> float:
    """Loss from threads beyond the fast cores: they wait for little cores, or share one core."""
    return math.exp(get("cpu.crowd")) * math.log2(threads / cores) if threads > cores else 0.0
