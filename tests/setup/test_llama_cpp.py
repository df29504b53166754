"""The llama.cpp installer: which flags it picks, what it keys by, and that it notices death."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeadapt.cpu import Cpu, parse_cpuinfo
from edgeadapt.errors import RuntimeFailure
from edgeadapt.files import write_json
from edgeadapt.setup import build, llama_cpp, self_test
from edgeadapt.setup.cpu import X86_OPTIONS, choose_options, enabled, foreign_build, lacking

ROOT = Path(__file__).parents[2]
PIP = (sys.executable, "-m", "pip")

SAPPHIRE_RAPIDS = """\
processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags\t\t: fpu sse sse2 ssse3 fma sse4_1 sse4_2 movbe popcnt avx f16c rdrand bmi1 avx2 bmi2 \
avx512f avx512dq avx512ifma avx512cd avx512bw avx512vl avx512vbmi avx512_vbmi2 avx512_vnni \
avx512_bitalg avx_vnni avx512_bf16 amx_bf16 avx512_fp16 amx_tile amx_int8
"""
HASWELL = """\
processor\t: 0
model name\t: Intel(R) Core(TM) i7-4790
flags\t\t: fpu sse sse2 ssse3 fma sse4_1 sse4_2 avx f16c bmi1 avx2 bmi2

processor\t: 1
model name\t: Intel(R) Core(TM) i7-4790
flags\t\t: fpu sse sse2 ssse3 fma sse4_1 sse4_2 avx f16c bmi1 avx2 bmi2
"""
ALDER_LAKE = HASWELL.replace("bmi2", "bmi2 avx_vnni")
KNIGHTS_LANDING = HASWELL.replace("bmi2", "bmi2 avx512f avx512cd avx512er avx512_vnni")
OLD_ATOM = "model name : Intel(R) Celeron(R) J4105\nflags : fpu sse sse2 ssse3 sse4_1 sse4_2\n"
CORTEX_A76 = """\
processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc \
dcpop asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd0b

Model\t\t: Raspberry Pi 5 Model B Rev 1.0
"""
CORTEX_A72 = "Features : fp asimd evtstrm crc32 cpuid\nModel : Raspberry Pi 4 Model B\n"
MIXED = """\
processor : 0
Features : fp asimd fphp asimdhp asimddp i8mm bf16 sve
processor : 1
Features : fp asimd fphp asimdhp asimddp i8mm bf16
"""


def on(text: str, *, safe: bool = False) -> set[str]:
    options = choose_options(parse_cpuinfo(text, "x86_64"), safe=safe)
    assert options["GGML_NATIVE"] == "OFF"
    return {name.removeprefix("GGML_") for name, value in options.items() if value == "ON"}


AVX2_SET = {"SSE42", "AVX", "F16C", "FMA", "AVX2", "BMI2"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HASWELL, AVX2_SET),
        (ALDER_LAKE, AVX2_SET | {"AVX_VNNI"}),
        # ggml's AVX512 switch means F, CD, BW, DQ and VL together, and the others extend it
        (KNIGHTS_LANDING, AVX2_SET),
        (OLD_ATOM, {"SSE42"}),
        (
            SAPPHIRE_RAPIDS,
            AVX2_SET | {"AVX_VNNI", "AVX512", "AVX512_VBMI", "AVX512_VNNI", "AVX512_BF16"},
        ),
    ],
)
def test_x86_flags(text: str, expected: set[str]) -> None:
    assert on(text) == expected
    assert on(text, safe=True) == expected & AVX2_SET


def test_amx_is_switched_off_by_name_although_the_cpu_lists_it() -> None:
    options = choose_options(parse_cpuinfo(SAPPHIRE_RAPIDS, "x86_64"))
    amx = {name: value for name, value in options.items() if "AMX" in name}
    assert amx == dict.fromkeys(("GGML_AMX_TILE", "GGML_AMX_INT8", "GGML_AMX_BF16"), "OFF")
    assert "AMX" not in enabled(options)


@pytest.mark.parametrize(
    ("text", "arch"),
    [
        (CORTEX_A76, "armv8.2-a+dotprod+fp16"),
        (CORTEX_A72, "armv8-a"),
        (MIXED, "armv8.2-a+dotprod+fp16+i8mm+bf16"),  # not SVE: only one of the cores has it
    ],
)
def test_arm_arch(text: str, arch: str) -> None:
    cpu = parse_cpuinfo(text, "aarch64")
    assert choose_options(cpu) == {"GGML_NATIVE": "OFF", "GGML_CPU_ARM_ARCH": arch}
    assert choose_options(cpu, safe=True)["GGML_CPU_ARM_ARCH"] == "armv8-a"


def test_the_name_of_the_cpu() -> None:
    assert parse_cpuinfo(CORTEX_A76, "aarch64").name == "Raspberry Pi 5 Model B Rev 1.0"
    assert parse_cpuinfo(HASWELL, "x86_64").name == "Intel(R) Core(TM) i7-4790"


@pytest.mark.parametrize("machine", ["arm64", "AMD64", "riscv64"])
def test_where_the_system_lists_nothing_ggml_chooses(machine: str) -> None:
    assert choose_options(parse_cpuinfo("", machine)) == {}


NAMES = sorted({name for needed in X86_OPTIONS.values() for name in needed} | {"amx_int8", "sse2"})


@given(st.sets(st.sampled_from(NAMES)))
def test_no_instruction_set_is_asked_for_that_the_cpu_lacks(features: set[str]) -> None:
    for safe in (False, True):
        options = choose_options(Cpu("x86_64", "any", frozenset(features | {"fpu"})), safe=safe)
        for name, value in options.items():
            if value == "ON":
                assert features.issuperset(X86_OPTIONS[name])
        assert options.keys() >= X86_OPTIONS.keys()  # ggml switches on what is not named


@given(st.sets(st.sampled_from(NAMES)), st.sets(st.sampled_from(NAMES)))
def test_a_build_lacks_nothing_where_it_was_made_for(here: set[str], there: set[str]) -> None:
    built = choose_options(Cpu("x86_64", "here", frozenset(here | {"fpu"})))
    assert lacking(built, Cpu("x86_64", "here", frozenset(here | {"fpu"}))) == ()
    lacks = lacking(built, Cpu("x86_64", "there", frozenset(there | {"fpu"})))
    assert bool(lacks) == any(
        value == "ON" and not there.issuperset(X86_OPTIONS[name]) for name, value in built.items()
    )


def test_what_another_arm_cpu_lacks_is_named() -> None:
    built = choose_options(parse_cpuinfo(CORTEX_A76, "aarch64"))
    assert lacking(built, parse_cpuinfo(CORTEX_A76, "aarch64")) == ()
    there = parse_cpuinfo(CORTEX_A72, "aarch64")
    assert lacking(built, there) == ("dotprod", "fp16")
    assert lacking(built, Cpu("arm64", "tells nothing", frozenset())) == ()
    assert foreign_build(("dotprod", "fp16"), "it") == (
        "this build needs dotprod and fp16, it has neither"
    )
    assert foreign_build(("sve",), "it") == "this build needs sve, it lacks it"
    assert foreign_build(("a", "b", "c"), "it").endswith("a, b and c, it has none of them")


@given(st.text(max_size=400))
def test_any_cpuinfo_can_be_read(text: str) -> None:
    assert isinstance(choose_options(parse_cpuinfo(text, "x86_64")), dict)


def folder_of(text: str, machine: str = "x86_64", version: str = "0.3.36") -> Path:
    cpu = parse_cpuinfo(text, machine)
    return llama_cpp._Plan(version, choose_options(cpu), cpu).folder


def test_wheels_are_cached_by_flags_and_version_not_by_the_cpus_name(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    haswell = folder_of(HASWELL)
    assert haswell.parent == own_cache / "wheels"
    assert haswell.name.startswith("0.3.36-py3-x86_64-")
    assert folder_of(HASWELL.replace("i7-4790", "i5-4590")) == haswell
    others = {
        folder_of(ALDER_LAKE),
        folder_of(OLD_ATOM),
        folder_of(HASWELL, version="0.3.35"),
        folder_of(CORTEX_A76, "aarch64"),
    }
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_OPENMP=OFF")
    others.add(folder_of(HASWELL))
    assert haswell not in others
    assert len(others) == 5


def test_the_pins_agree() -> None:
    constraints = (ROOT / "constraints.txt").read_text()
    assert f"llama-cpp-python=={llama_cpp.VERSION}\n" in constraints
    assert f'"llama-cpp-python>={llama_cpp.VERSION}"' in (ROOT / "pyproject.toml").read_text()


def test_the_installed_library_passes() -> None:
    pytest.importorskip("llama_cpp")
    outcome = llama_cpp.run_self_test()
    assert outcome.passed, outcome.text
    assert "float32" in outcome.text


@pytest.mark.parametrize(
    ("program", "text"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "it was killed by SIGILL"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "it was killed by SIGSEGV"),
        ("print('logits are not finite'); raise SystemExit(3)", "logits are not finite"),
        ("raise SystemExit('llama_decode failed')", "llama_decode failed"),
    ],
)
def test_a_child_that_dies_or_complains_is_reported(program: str, text: str) -> None:
    outcome = llama_cpp.run_self_test((sys.executable, "-c", program))
    assert not outcome.passed
    assert text in outcome.text


def test_a_build_for_another_cpu_is_named_before_it_dies(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("llama_cpp")
    old = Cpu("x86_64", "Old", frozenset({"fpu", "sse4_2"}))
    monkeypatch.setattr(self_test, "this_cpu", lambda: old)
    built = {"options": choose_options(parse_cpuinfo(HASWELL, "x86_64"))}
    monkeypatch.setattr(self_test, "build_record", lambda: built)
    assert self_test.main() == self_test.FOREIGN
    assert "this build needs AVX, F16C, FMA, AVX2 and BMI2, Old has none" in capsys.readouterr().out


def test_without_a_gpu_the_test_on_it_fails() -> None:
    llama = pytest.importorskip("llama_cpp")
    if llama.llama_supports_gpu_offload():
        pytest.skip("there is a GPU")
    outcome = llama_cpp.run_self_test((*llama_cpp.SELF_TEST, "--gpu"))
    assert not outcome.passed
    assert "sees no GPU" in outcome.text


def test_wrong_numbers_are_told_from_rounding() -> None:
    exact = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)
    assert self_test.judge(exact * np.float32(1.02), exact)[1] == 0
    assert self_test.judge(exact[::-1].copy(), exact)[1] == self_test.WRONG
    broken = exact.copy()
    broken[3, 7] = np.nan
    assert self_test.judge(broken, exact) == ("logits are not finite", self_test.WRONG)


def test_a_library_that_does_not_load_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "llama_cpp.py").write_text("raise RuntimeError('libgomp.so.1: not found')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    outcome = llama_cpp.run_self_test()
    assert not outcome.passed
    assert "libgomp.so.1" in outcome.text


class Machine:
    """Stands for pip and the compiler, whose real run takes minutes: builds a file, installs its
    name, and lets the self-test be a real child process that does what that build would do."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, dies: tuple[str, ...]) -> None:
        self.dies = dies
        self.built: list[str] = []
        self.installed: dict[str, object] | None = None
        cpu = parse_cpuinfo(SAPPHIRE_RAPIDS, "x86_64")
        monkeypatch.setattr(llama_cpp, "this_cpu", lambda: cpu)
        monkeypatch.setattr(llama_cpp, "build_record", lambda: self.installed)
        monkeypatch.setattr(build, "wheel", self.wheel)
        monkeypatch.setattr(build, "install", self.install)
        monkeypatch.setattr(build, "pip", self.pip)
        run = llama_cpp.run_self_test
        monkeypatch.setattr(llama_cpp, "run_self_test", lambda *_: run(self.command()))

    def wheel(self, version, options, record, scratch, out) -> None:
        self.built.append(record["features"])
        write_json(out / "one.whl", record)

    def install(self, path: Path) -> None:
        self.installed = llama_cpp.read_json(path)

    def pip(self, *arguments: str) -> None:
        assert arguments[0] == "uninstall"
        self.installed = None

    def command(self) -> tuple[str, ...]:
        assert self.installed is not None
        bad = any(name in str(self.installed["features"]) for name in self.dies)
        program = "import os; os.kill(os.getpid(), 4)" if bad else "print('fine')"
        return (sys.executable, "-c", program)


def test_a_second_run_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, dies=())
    assert llama_cpp.setup_llama_cpp().action == "built"
    again = llama_cpp.setup_llama_cpp()
    assert (again.action, again.fallback, len(machine.built)) == ("kept", False, 1)
    machine.installed = None
    assert llama_cpp.setup_llama_cpp().action == "installed"
    assert llama_cpp.setup_llama_cpp(rebuild=True).action == "built"
    assert len(machine.built) == 2


def test_a_build_that_dies_is_replaced_by_avx2_and_not_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine(monkeypatch, dies=("AVX512",))
    result = llama_cpp.setup_llama_cpp()
    assert result.fallback
    assert result.features == "SSE42 AVX F16C FMA AVX2 BMI2"
    assert len(machine.built) == 2
    again = llama_cpp.setup_llama_cpp()
    assert (again.action, again.fallback, len(machine.built)) == ("kept", True, 2)
    llama_cpp.setup_llama_cpp(rebuild=True)
    assert len(machine.built) == 4


def test_when_everything_dies_nothing_is_left_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, dies=("AVX",))
    with pytest.raises(RuntimeFailure, match=r"AVX2 BMI2.*killed by SIGILL.*uninstalled"):
        llama_cpp.setup_llama_cpp()
    assert machine.installed is None
    assert len(machine.built) == 2


def test_kernels_for_a_gpu_are_another_build(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, dies=())
    gpu = {"GGML_CUDA": "ON", "CMAKE_CUDA_ARCHITECTURES": "87"}
    monkeypatch.setattr(llama_cpp, "cuda_options", lambda: gpu)
    assert llama_cpp.setup_llama_cpp().action == "built"
    with_gpu = llama_cpp.setup_llama_cpp(cuda=True)
    assert with_gpu.action == "built"
    assert with_gpu.features.endswith("CUDA")
    assert gpu.items() <= with_gpu.options.items()
    assert llama_cpp.setup_llama_cpp(cuda=True).action == "kept"
    assert llama_cpp.setup_llama_cpp().action == "installed"


def test_a_gpu_on_which_nothing_computes_leaves_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, dies=("CUDA",))
    monkeypatch.setattr(llama_cpp, "cuda_options", lambda: {"GGML_CUDA": "ON"})
    with pytest.raises(RuntimeFailure, match="uninstalled again, leave --cuda out"):
        llama_cpp.setup_llama_cpp(cuda=True)
    assert machine.installed is None


def test_the_self_test_of_a_gpu_build_runs_on_the_gpu() -> None:
    cpu = parse_cpuinfo(CORTEX_A76, "aarch64")
    plain = llama_cpp._Plan("1", choose_options(cpu), cpu)
    assert "--gpu" not in plain.self_test
    plan = llama_cpp._Plan("1", choose_options(cpu) | {"GGML_CUDA": "ON"}, cpu)
    assert plan.self_test[-1] == "--gpu"
    assert plan.features == "armv8.2-a+dotprod+fp16 CUDA"
    assert plan.folder != plain.folder


def test_a_missing_compiler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(RuntimeFailure, match=r"C and a C\+\+ compiler.*apt install"):
        build.check_compilers()
    monkeypatch.setenv("CC", "some-cc")
    with pytest.raises(RuntimeFailure, match=r"needs a C\+\+ compiler"):
        build.check_compilers()


@pytest.mark.parametrize(
    ("line", "step"),
    [
        ("  [3/83] /usr/bin/g++ -c x.cpp", (3, 83)),
        ("[83/83] Linking", (83, 83)),
        ("  copying [1/2]", None),
        ("[x/y]", None),
    ],
)
def test_ninjas_steps_are_read(line: str, step: tuple[int, int] | None) -> None:
    assert build.parse_step(line) == step


def test_pips_failure_is_one_sentence() -> None:
    with pytest.raises(RuntimeFailure, match=r"^pip install failed: ERROR: [^\n]*no-such"):
        build.pip("install", "no-such.whl")


@pytest.mark.parametrize(
    ("output", "line"),
    [
        ("  error: subprocess-exited-with-error\n  a.cpp:3:1: error: bad\nERROR: no", "a.cpp:3:1:"),
        ("  CMake Error at CMakeLists.txt:3\nERROR: Failed building wheel", "CMake Error at"),
        ("ERROR: Ignored: 0.2.8\nERROR: No matching distribution\n[notice]", "ERROR: No match"),
        ("python: No module named pip\n", "python: No module named pip"),
        ("", "it said nothing"),
    ],
)
def test_the_most_telling_line_is_found(output: str, line: str) -> None:
    assert build._last_word(output).startswith(line)


def test_a_failed_build_names_its_log(tmp_path: Path) -> None:
    log_file = tmp_path / "build.log"
    with pytest.raises(RuntimeFailure, match=re.escape(str(log_file))):
        list(build._run((*PIP, "wheel", str(tmp_path / "none")), {}, log_file))
    assert "none" in log_file.read_text()


SPAWN = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
child.wait()
"""


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="process groups")
def test_leaving_a_build_early_ends_what_it_started() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SPAWN], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    grandchild = psutil.Process(int(process.stdout.readline()))
    with pytest.raises(KeyboardInterrupt), build._ended_with_us(process):
        raise KeyboardInterrupt
    assert process.returncode == -signal.SIGTERM
    psutil.wait_procs([grandchild], timeout=60)
    assert not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE
    process.stdout.close()


def test_two_builds_in_one_place_wait_for_each_other(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    path = tmp_path / "build.lock"
    with path.open("w") as other:
        with build.one_at_a_time(path), pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_the_command_says_what_it_did(own_cache: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edgeadapt", "setup", "llama-cpp", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--rebuild" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
