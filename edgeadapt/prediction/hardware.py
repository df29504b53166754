"""What does the computing: cores and memory of a device, from its profile or from its class."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from edgeadapt.devices import DeviceProfile, list_profiles, load_entry
from edgeadapt.errors import InputError

Backend = Literal["cpu", "gpu", "npu"]


@dataclass(frozen=True)
class Hardware:
    """The part of a device that runs a model."""

    backend: Backend
    family: str
    """Core class of a CPU (`a76`), or who made GPU or NPU (`apple`): what fitted values hang on."""
    peak_gbps: float
    """Bus width times rate of the memory that it reads, in 10^9 bytes a second."""
    cores: int = 1
    """CPU cores of the fast kinds."""
    ghz: float = 1.0
    """Of these cores."""
    vectors: float = 2.0
    """128-bit vectors that a core works on each cycle: decode unpacks weights this fast."""
    simd: float = 16.0
    """8-bit multiply-adds a cycle that its instruction set peaks at: prompts use these."""
    all_cores: int = 0
    """CPU cores of every kind; 0 if not known."""
    cores_known: bool = True
    """False where the number of cores is only usual for the class."""
    read_gbps: float | None = None
    """What its CPU cores together were measured to read, where somebody did."""
    bandwidth_known: bool = True
    """False where the bandwidth is only usual for the class."""
    basis: str = ""
    """For a person: the profile, or the class, that the facts come from."""


@dataclass(frozen=True)
class CpuClass:
    """Cores that behave alike, and what is usual for the chips that have them."""

    name: str
    pattern: str
    """Of SoC, CPU and device names, in lower case."""
    cores: int
    ghz: float
    gbps: float
    vectors: float
    simd: float


# vectors: 128-bit SIMD pipes (A76 two, Cortex-X and Apple four, AVX2 cores two of twice the width).
# simd, 8-bit multiply-adds a cycle: NEON alone 16, dotprod 32 a pipe, i8mm 64 a pipe; AVX2 64
# (vpmaddubsw on two ports), VNNI 128.
CPU_CLASSES: tuple[CpuClass, ...] = (
    CpuClass(
        "oryon", r"x elite|x1e|x plus|x1p|oryon|8 elite|sm8750|sm8850|x2e", 8, 3.8, 135, 4, 128
    ),
    CpuClass(
        "cortex-x",
        r"8\+? gen [123]|sm8[4-6]50|sm8475|sm8635|tensor g[1-9]|dimensity (8[3-9]|9)\d\d\d"
        r"|exynos 2[2-9]|xr2\+? gen 2|cortex-x|cp8180|\bcix\b|q8b|8cx",
        4, 3.0, 60, 3, 128,
    ),
    CpuClass("apple", r"apple|\bm[1-5]( |$|-)|\ba1[4-9]\b|vision pro", 4, 3.5, 100, 4, 128),
    CpuClass(
        "a78", r"orin|a78|dimensity 8[12]|sd888|sm8350|qcs6490", 6, 2.0, 68, 2, 64
    ),
    CpuClass(
        "a76",
        r"bcm2712|pi 5|cm5|rk35(82|88)|orange pi 5|rock 5|a7[67]\b|sd8[56]5|sm8[12]50"
        r"|xr2|quest [2p]",
        4, 2.4, 24, 2, 64,
    ),
    CpuClass(
        "a72",
        r"bcm2711|pi 4|cm4|a7[2-5]\b|rk3399|rk3576|snapdragon 8[45]0|sdm8[45]",
        4, 1.8, 12.8, 1, 16,
    ),
    CpuClass(
        "a53",
        r"a5[35]\b|pi 3|pi zero 2|bcm2837|rk356|rk3328|allwinner|h6\d\d|s905",
        4, 1.6, 8, 0.7, 12,
    ),
    CpuClass(
        "atom", r"\bn[12359]\d{2,3}\b|celeron|pentium|atom|j4\d\d\d|i3-n", 4, 3.0, 30, 2, 64
    ),
    CpuClass(
        "zen4",
        r"ryzen (ai|z\d)|z1|ryzen [3579]( pro)? [789]\d{3}|zen ?[45]|88?40[uh]|strix|krackan"
        r"|ai \d+ (hx )?\d{3}|epyc 9|xdna2|8700g",
        8, 4.5, 110, 4, 128,
    ),
    CpuClass("zen", r"ryzen|zen|amd|epyc|threadripper|steam deck", 8, 4.2, 55, 4, 64),
    CpuClass(
        "intel-avx512",
        r"i[3579]-1[01]\d{2}g\d|i[579]-11\d{3}|tiger|ice ?lake|xeon|rocket",
        4, 4.0, 51.2, 4, 128,
    ),
    CpuClass(
        "intel-hybrid",
        r"ultra|i[3579]-1[2-4]\d{2,3}|meteor|lunar|arrow lake|alder|raptor",
        6, 4.5, 85, 4, 96,
    ),
    CpuClass("intel", r"i[3579]-|intel|core m|skylake|coffee|haswell", 4, 3.8, 38.4, 4, 64),
)  # fmt: skip
_UNKNOWN = CpuClass("unknown", "", 4, 2.5, 30, 2, 64)

_GPU_FAMILIES = (
    ("apple", r"apple|metal|\bm[1-5]\b|vision pro"),
    ("orin", r"orin|jetson|tegra|cuda"),
    ("intel-gpu", r"intel|core ultra|\barc\b|iris|i[3579]-"),
    ("radeon", r"amd|ryzen|radeon|780m|890m|680m|vega"),
    ("adreno", r"adreno|snapdragon|sm8|qualcomm|x elite|quest|xr2|x1e"),
    ("mali", r"mali|rk35|tensor|dimensity|exynos"),
)
_NPU_FAMILIES = (
    ("rknpu", r"rk3|rkllm|rknn|rockchip"),
    ("hexagon", r"snapdragon|sm8|qnn|hexagon|htp|x elite|qualcomm|quest|xr2"),
    ("xdna", r"ryzen|amd|xdna|fastflow"),
    ("intel-npu", r"intel|core ultra|openvino"),
    ("ane", r"apple|ane|coreml"),
)


def hardware_of(
    device: str, soc: str, runtime: str, *, mem_bw_gbps: float | None = None
) -> Hardware:
    """Hardware as a table of measurements names it.

    A device that has a profile is predicted from the profile's facts, any other from those of its
    class; a bandwidth in the table goes before both.

    Args:
        device: such as `Raspberry Pi 5 16GB`.
        soc: such as `BCM2712`.
        runtime: such as `llama.cpp CUDA`; tells CPU, GPU or NPU.
        mem_bw_gbps: peak bandwidth in 10^9 bytes a second, where the table gives it.

    Raises:
        InputError: neither the device nor its bandwidth tells anything.
    """
    names = f"{device} | {soc}"
    if not names.strip(" |"):
        raise InputError("neither device nor SoC is named")
    backend = backend_of(runtime, names)
    profile = _find_profile(device, soc)
    if profile is not None:
        found = profile_hardware(profile, backend, family_hint=f"{names} | {runtime}")
        basis = f"profile {profile.name}"
    else:
        found = _class_hardware(names, backend, runtime)
        if found.family == "unknown" and mem_bw_gbps is None:
            raise InputError(f"{device or soc!r} is of no known class and has no bandwidth given")
        basis = f"no profile: class {found.family}"
    if mem_bw_gbps is not None:
        found = replace(found, peak_gbps=mem_bw_gbps, bandwidth_known=True)
    return replace(found, basis=basis)


def backend_of(runtime: str, device: str) -> Backend:
    """What a runtime computes on, where its name or its habit on such a device tells."""
    text = runtime.lower()
    if re.search(r"\bnpu\b|htp|hexagon|rkllm|rknn|\bane\b|fastflow", text):
        return "npu"
    if re.search(r"\bcpu\b|kleidi|t-mac|bitnet\.cpp", text):
        return "cpu"
    if re.search(r"cuda|metal|vulkan|opencl|rocm|hip|sycl|gpu|tensorrt|mlc|mlx|directml", text):
        return "gpu"
    on = device.lower()
    uses_gpu = re.search(r"jetson|orin|apple|\bm[1-5]\b|geforce|rtx", on)
    return "gpu" if uses_gpu and re.search(r"llama|ollama|lm studio|llamafile", text) else "cpu"


def profile_hardware(
    profile: DeviceProfile, backend: Backend = "cpu", *, family_hint: str = ""
) -> Hardware:
    """The CPU, GPU or NPU of a profiled device; `family_hint` adds names to tell its maker by."""
    names = f"{profile.soc} {profile.cpu.name} {profile.title}".lower()
    kind = cpu_class(f"{' '.join(core.name for core in profile.cpu.cores)} | {names}")
    clocked = [core.ghz.value for core in profile.cpu.cores if core.ghz is not None]
    family = kind.name if backend == "cpu" else _accelerator(f"{names} {family_hint}", backend)
    return Hardware(
        backend=backend,
        family=family,
        peak_gbps=profile.memory.peak_gbps.value,
        cores=profile.fast_cores,
        all_cores=sum(int(core.count.value) for core in profile.cpu.cores),
        ghz=max(clocked, default=kind.ghz),
        vectors=kind.vectors,
        simd=simd_width(profile.cpu.isa, kind.simd),
        read_gbps=profile.memory.read_gbps.value if profile.memory.read_gbps else None,
        basis=f"profile {profile.name}",
    )


def simd_width(isa: tuple[str, ...], default: float = 16.0) -> float:
    """8-bit multiply-adds a cycle that instruction sets peak at; a coarse scale, not a promise."""
    for names, width in (
        ({"avx512_vnni", "avx512vnni", "avx_vnni"}, 128.0),
        ({"i8mm"}, 128.0),
        ({"avx2", "dotprod"}, 64.0),
        ({"neon"}, 16.0),
    ):
        if names & set(isa):
            return width
    return default


def cpu_class(names: str) -> CpuClass:
    """The class of CPU that names (of cores, SoC, device) belong to."""
    text = names.lower()
    return next((kind for kind in CPU_CLASSES if re.search(kind.pattern, text)), _UNKNOWN)


def _class_hardware(names: str, backend: Backend, runtime: str) -> Hardware:
    kind = cpu_class(names)
    return Hardware(
        backend=backend,
        family=kind.name if backend == "cpu" else _accelerator(f"{names} {runtime}", backend),
        peak_gbps=kind.gbps,
        cores=kind.cores,
        ghz=kind.ghz,
        vectors=kind.vectors,
        simd=kind.simd,
        bandwidth_known=False,
        cores_known=False,
    )


def _accelerator(names: str, backend: Backend) -> str:
    families = _GPU_FAMILIES if backend == "gpu" else _NPU_FAMILIES
    text = names.lower()
    return next((name for name, pattern in families if re.search(pattern, text)), "unknown")


@cache
def _profiles() -> tuple[DeviceProfile, ...]:
    entries = map(load_entry, list_profiles())
    return tuple(entry for entry in entries if isinstance(entry, DeviceProfile))


def _find_profile(device: str, soc: str) -> DeviceProfile | None:
    """The profile whose `match` names a device, or else its SoC; the longest match wins."""
    for text in (device.lower(), soc.lower()):
        found = [
            (len(hit.group()), profile)
            for profile in _profiles()
            for pattern in profile.match
            if (hit := re.search(pattern, text))
        ]
        if found:
            return max(found, key=lambda pair: pair[0])[1]
    return None
