"""Which of ggml's kernels this CPU can run, told as cmake options.

A build with `-march=native` is not to be trusted: compilers believe the CPU's identification, while
a virtual machine may trap instructions that it names. So the options are chosen one by one from
what the operating system lists, and AMX, which is named on machines where it faults, is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from edgeadapt.cpu import Cpu

X86_OPTIONS: dict[str, tuple[str, ...]] = {
    "GGML_SSE42": ("sse4_2",),
    "GGML_AVX": ("avx",),
    "GGML_F16C": ("f16c",),
    "GGML_FMA": ("fma",),
    "GGML_AVX2": ("avx2",),
    "GGML_BMI2": ("bmi2",),
    "GGML_AVX_VNNI": ("avx_vnni", "avx2"),
    "GGML_AVX512": ("avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"),
    "GGML_AVX512_VBMI": ("avx512vbmi", "avx512bw", "avx512vl"),
    "GGML_AVX512_VNNI": ("avx512_vnni", "avx512bw", "avx512vl"),
    "GGML_AVX512_BF16": ("avx512_bf16", "avx512bw", "avx512vl"),
}
"""ggml's option -> the names in /proc/cpuinfo that must all be there."""

_X86_SAFE = ("GGML_SSE42", "GGML_AVX", "GGML_F16C", "GGML_FMA", "GGML_AVX2", "GGML_BMI2")
_X86_NEVER = ("GGML_AMX_TILE", "GGML_AMX_INT8", "GGML_AMX_BF16")

_ARM_EXTENSIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("dotprod", ("asimddp",)),
    ("fp16", ("fphp", "asimdhp")),
    ("i8mm", ("i8mm",)),
    ("bf16", ("bf16",)),
    ("sve", ("sve",)),
    ("sve2", ("sve2",)),
)
"""GCC's -march extension -> the names in /proc/cpuinfo. SME is left out: kernels for it are new."""

_X86 = ("x86_64", "amd64", "i686")
_ARM = ("aarch64", "arm64")


def cpuinfo_names(extensions: Iterable[str]) -> frozenset[str]:
    """What /proc/cpuinfo lists on an Arm CPU that has these of GCC's -march extensions.

    Others (`neon`, which all have; `sme`, which is left out) count for nothing.
    """
    wanted = set(extensions)
    found = (needed for name, needed in _ARM_EXTENSIONS if name in wanted)
    return frozenset({"asimd"}.union(*found))


def choose_options(cpu: Cpu, *, safe: bool = False) -> dict[str, str]:
    """Cmake options for ggml's CPU backend on this CPU.

    Every instruction set is named, on or off, because ggml turns some on by itself. Where the
    system does not list the CPU's features (macOS, Windows), ggml's own choice stands: {}.

    Args:
        cpu: what to build for.
        safe: no more than AVX2 on x86 and plain Armv8 on Arm, for when the full list dies.
    """
    machine = cpu.machine.lower()
    if not cpu.features:
        return {}
    if machine in _X86:
        has = {
            option: cpu.features.issuperset(needed) and (option in _X86_SAFE or not safe)
            for option, needed in X86_OPTIONS.items()
        }
        if not has["GGML_AVX512"]:  # the others only extend it
            has = {name: on and not name.startswith("GGML_AVX512_") for name, on in has.items()}
        chosen = {option: "ON" if on else "OFF" for option, on in has.items()}
        return {"GGML_NATIVE": "OFF", **chosen, **dict.fromkeys(_X86_NEVER, "OFF")}
    if machine in _ARM:
        return {"GGML_NATIVE": "OFF", "GGML_CPU_ARM_ARCH": _arm_arch(cpu.features, safe)}
    return {}


def _arm_arch(features: frozenset[str], safe: bool) -> str:
    """A -march value. Armv8.2 is the first that these extensions may be added to."""
    extensions = [
        f"+{name}" for name, needed in _ARM_EXTENSIONS if features.issuperset(needed) and not safe
    ]
    return "armv8.2-a" + "".join(extensions) if extensions else "armv8-a"


def lacking(options: Mapping[str, str], cpu: Cpu) -> tuple[str, ...]:
    """Instruction sets that a build with these options uses and a CPU does not have.

    Args:
        options: of `choose_options`, perhaps for another CPU.
        cpu: where it is to run; one that tells no features lacks nothing.
    """
    if not cpu.features:
        return ()
    arm = options.get("GGML_CPU_ARM_ARCH", "").split("+")[1:]
    needed = {name: names for name, names in _ARM_EXTENSIONS if name in arm}
    needed |= {
        option.removeprefix("GGML_"): names
        for option, names in X86_OPTIONS.items()
        if options.get(option) == "ON"
    }
    return tuple(name for name, names in needed.items() if not cpu.features.issuperset(names))


def foreign_build(lacks: Sequence[str], cpu: str) -> str:
    """Why a build does not run on a CPU, in words; `lacks` as `lacking` says, not empty."""
    none = {1: "lacks it", 2: "has neither"}.get(len(lacks), "has none of them")
    *others, last = lacks
    names = f"{', '.join(others)} and {last}" if others else last
    return f"this build needs {names}, {cpu} {none}"


def enabled(options: dict[str, str]) -> str:
    """The instruction sets that options turn on, in words for a log line."""
    if "GGML_CPU_ARM_ARCH" in options:
        cuda = options.get("GGML_CUDA") == "ON"
        return options["GGML_CPU_ARM_ARCH"] + (" CUDA" if cuda else "")
    names = [name.removeprefix("GGML_") for name, value in options.items() if value == "ON"]
    if not options:
        return "ggml's own choice"
    return " ".join(names) or "no vector extensions"
