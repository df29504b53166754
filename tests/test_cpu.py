import platform

from edgeadapt.cpu import arm_features, parse_cpuinfo, read_text, this_cpu


def test_only_what_every_core_has_counts():
    text = "model name\t: One\nflags\t: fpu avx avx2\n\nmodel name\t: One\nflags\t: fpu avx\n"
    cpu = parse_cpuinfo(text, "x86_64")
    assert (cpu.name, cpu.features) == ("One", {"fpu", "avx"})


def test_a_pi_says_its_name_at_the_end():
    text = "processor\t: 0\nFeatures\t: fp asimd asimddp\n\nModel\t: Raspberry Pi 5\n"
    cpu = parse_cpuinfo(text, "aarch64")
    assert (cpu.name, cpu.features) == ("Raspberry Pi 5", {"fp", "asimd", "asimddp"})


def test_what_the_kernel_tells_a_program():
    names = {"fp", "asimd", "fphp", "asimdhp", "asimddp"}  # of a Cortex-A76
    assert arm_features(0x119FFB, 0) == names
    assert arm_features(0x8FF, 0) == {"fp", "asimd"}  # of a Cortex-A72
    assert arm_features(0, 1 << 13 | 1 << 1) == {"i8mm", "sve2"}


def test_nothing_known():
    cpu = parse_cpuinfo("", "riscv64")
    assert (cpu.machine, cpu.name, cpu.features) == ("riscv64", "", frozenset())


def test_this_cpu_always_has_a_name(tmp_path):
    cpu = this_cpu()
    assert cpu.name
    assert cpu.machine == platform.machine()
    assert read_text(str(tmp_path / "missing")) == ""
