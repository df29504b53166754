"""Profiles of machines, from what Linux and macOS say of them, and of this one."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from edgeadapt.cli import cli
from edgeadapt.cpu import parse_cpuinfo
from edgeadapt.detect.bandwidth import ReadBandwidth, measure_read_bandwidth
from edgeadapt.detect.cores import (
    CoreGroup,
    linux_cores,
    macos_cores,
    parse_cpu_list,
    parse_sysctl,
    profile_isa,
)
from edgeadapt.detect.profile import (
    Machine,
    build_profile,
    linux_gpu,
    macos_machine,
    profile_yaml,
    read_machine,
)
from edgeadapt.devices import DeviceProfile, parse_entry
from edgeadapt.errors import InputError

READ = ReadBandwidth(one_thread=5.0, best=9.5, threads=4, buffer_bytes=256 << 20)


def arm(parts: str, features: str, implementer: str = "0x41") -> str:
    """/proc/cpuinfo of an Arm machine with these CPU parts."""
    return "\n".join(
        f"processor\t: {number}\nBogoMIPS\t: 108.00\nFeatures\t: {features}\n"
        f"CPU implementer\t: {implementer}\nCPU architecture: 8\nCPU part\t: {part}\n"
        for number, part in enumerate(parts.split())
    )


PI5 = arm("0xd0b 0xd0b 0xd0b 0xd0b", "fp asimd evtstrm aes crc32 atomics fphp asimdhp asimddp")
PI4 = arm("0xd08 0xd08 0xd08 0xd08", "fp asimd evtstrm crc32 cpuid")
RK3588 = arm("0xd05 0xd05 0xd05 0xd05 0xd0b 0xd0b 0xd0b 0xd0b", "fp asimd fphp asimdhp asimddp")
ORIN = arm(" ".join(["0xd42"] * 6), "fp asimd fphp asimdhp asimddp")
X_ELITE = arm(" ".join(["0x001"] * 12), "fp asimd fphp asimdhp asimddp i8mm bf16", "0x51")

LAPTOP = "\n".join(
    f"processor\t: {cpu}\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Core(TM) 155H\n"
    f"physical id\t: 0\ncore id\t\t: {core}\nflags\t\t: fpu avx avx2 fma f16c bmi2 avx_vnni\n"
    for cpu, core in enumerate([0, 0, 4, 4, 8, 9, 10, 11])
)

M2 = """\
machdep.cpu.brand_string: Apple M2
hw.memsize: 17179869184
hw.physicalcpu: 8
hw.nperflevels: 2
hw.perflevel0.physicalcpu: 4
hw.perflevel0.name: Performance
hw.perflevel1.physicalcpu: 4
hw.perflevel1.name: Efficiency
hw.optional.neon: 1
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_I8MM: 1
hw.optional.arm.FEAT_BF16: 1
hw.optional.arm.FEAT_FP16: 1
hw.optional.arm.FEAT_SME: 0
"""
INTEL_MAC = """\
machdep.cpu.brand_string: Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz
hw.memsize: 17179869184
hw.physicalcpu: 6
hw.cpufrequency_max: 2600000000
hw.optional.avx2_0: 1
hw.optional.fma: 1
hw.optional.avx512f: 0
"""


@pytest.mark.parametrize(
    ("text", "clocks", "expected"),
    [
        (PI5, dict.fromkeys(range(4), 2400000), [("Cortex-A76", 4, 2.4, False)]),
        (PI4, {}, [("Cortex-A72", 4, None, False)]),
        (
            RK3588,
            dict.fromkeys(range(4), 1800000)
            | dict.fromkeys((4, 5), 2352000)
            | dict.fromkeys((6, 7), 2304000),
            [
                ("Cortex-A76", 2, 2.35, False),
                ("Cortex-A76", 2, 2.3, False),
                ("Cortex-A55", 4, 1.8, True),
            ],
        ),
        (ORIN, dict.fromkeys(range(6), 1510400), [("Cortex-A78AE", 6, 1.51, False)]),
        (X_ELITE, {}, [("Oryon", 12, None, False)]),
        (arm("0xfff 0xfff", "asimd"), {}, [("Arm part 0xfff", 2, None, False)]),
    ],
)
def test_arm_cores(
    text: str, clocks: dict[int, int], expected: list[tuple[str, int, float | None, bool]]
) -> None:
    assert linux_cores(text, clocks, name="board") == [CoreGroup(*group) for group in expected]


def test_x86_threads_are_not_cores_and_efficiency_cores_are_told_apart() -> None:
    groups = linux_cores(LAPTOP, {}, name="Ultra 7", efficient=parse_cpu_list("4-7"))
    assert groups == [
        CoreGroup("Ultra 7", 2, None, False),
        CoreGroup("Ultra 7, efficiency", 4, None, True),
    ]


def test_instruction_sets() -> None:
    def isa(text: str, machine: str) -> tuple[str, ...]:
        return profile_isa(parse_cpuinfo(text, machine).features)

    assert isa(PI5, "aarch64") == ("neon", "fp16", "dotprod")
    assert isa(PI4, "aarch64") == ("neon",)
    assert isa(X_ELITE, "aarch64") == ("neon", "fp16", "dotprod", "i8mm", "bf16")
    assert isa(LAPTOP, "x86_64") == ("avx2", "fma", "f16c", "bmi2", "avx_vnni")


def test_an_apple_mac() -> None:
    machine = macos_machine(M2, "aarch64", 1, "macOS 15.1")
    assert machine.ram_bytes == 16 << 30
    assert machine.isa == ("neon", "fp16", "dotprod", "i8mm", "bf16")
    profile = build_profile(machine, READ, None)
    assert profile.name == "apple-m2" and profile.fast_cores == 4
    assert [core.little for core in profile.cpu.cores] == [False, True]
    assert profile.gpu is not None and profile.gpu.unified_memory
    assert profile.runtimes[0].backend == "gpu"


def test_an_intel_mac() -> None:
    machine = macos_machine(INTEL_MAC, "x86_64", 1, "macOS 12")
    assert machine.isa == ("avx2", "fma") and machine.gpu is None
    assert macos_cores(parse_sysctl(INTEL_MAC), name="i7") == [CoreGroup("i7", 6, 2.6, False)]
    assert build_profile(machine, READ, "mac").threads.value == 6


def test_a_jetson_shares_its_memory_with_cuda() -> None:
    gpu = linux_gpu("NVIDIA Jetson Orin Nano Developer Kit", nvidia=True)
    assert gpu is not None and gpu["apis"] == ["cuda"] and gpu["unified_memory"]
    assert linux_gpu("Raspberry Pi 5 Model B", nvidia=False) is None


def pi5() -> Machine:
    name = "Raspberry Pi 5 Model B Rev 1.0"
    cores = (CoreGroup("Cortex-A76", 4, 2.4, False),)
    isa = ("neon", "fp16", "dotprod")
    return Machine(name, "aarch64", "Debian", cores, isa, 8 << 30, "ondemand", name, None)


def test_what_is_measured_has_a_source_and_the_rest_is_marked() -> None:
    profile = build_profile(pi5(), READ, None)
    assert profile.name == "raspberry-pi-5-model-b-rev-1-0"
    assert profile.cpu.governor == "ondemand"
    figures = dict(profile.figures())
    assert figures["memory.read_gbps"].source == "detected"
    assert figures["memory.peak_gbps"].estimate
    text = profile_yaml(profile)
    assert parse_entry(text, "x.yaml") == profile
    assert "count: {value: 4, source: detected}" in text
    with pytest.raises(InputError, match="name"):
        build_profile(pi5(), READ, "My Board")


def test_this_machine(tmp_path: Path) -> None:
    machine = read_machine()
    assert machine.cores and machine.ram_bytes > 1 << 28
    out = tmp_path / "here.yaml"
    result = CliRunner().invoke(cli, ["devices", "detect", "--name", "here", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "GB/s read" in result.stdout
    entry = parse_entry(out.read_text(), str(out))
    assert isinstance(entry, DeviceProfile) and entry.memory.read_gbps is not None
    assert yaml.safe_load(out.read_text())["name"] == "here"
    again = CliRunner().invoke(cli, ["devices", "detect", "--out", str(out)])
    assert again.exit_code == 2 and "exists" in again.stderr


def test_bandwidth_is_read_with_every_count_of_threads() -> None:
    read = measure_read_bandwidth(2, passes=1)
    assert 0 < read.one_thread <= read.best
    assert read.threads in (1, 2)


@given(st.text(max_size=300))
def test_any_text_is_survived(text: str) -> None:
    linux_cores(text, {}, name="x")
    parse_sysctl(text)
