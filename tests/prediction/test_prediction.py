"""Physics first: the formulas, the fit, and what a prediction says of itself."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeadapt.devices import load_profile
from edgeadapt.errors import InputError
from edgeadapt.prediction import (
    Hardware,
    Workload,
    decode_speed,
    hardware_of,
    named_workload,
    prefill_speed,
    profile_hardware,
)
from edgeadapt.prediction.fitted import Fitted, load_fitted, prior
from edgeadapt.prediction.fitting import Observation, fit, observation
from edgeadapt.prediction.memory import memory_needed
from edgeadapt.prediction.models import find_model
from edgeadapt.prediction.physics import decode_log_speed, runtime_key
from edgeadapt.prediction.rows import Row, read_rows
from edgeadapt.prediction.scoring import score_row, summary
from edgeadapt.prediction.workload import read_quantization

ROWS = Path(__file__).parents[2] / "benchmarks" / "data" / "device_rows.csv"
PI5 = profile_hardware(load_profile("raspberry-pi-5"))
LLAMA_1B = named_workload("Llama 3.2 1B", "Q4_0")


def test_more_bytes_are_slower_and_more_threads_faster() -> None:
    big = named_workload("Llama 3.1 8B", "Q4_0")
    assert decode_speed(PI5, big, "llama-cpp").median < decode_speed(PI5, LLAMA_1B, "x").median
    medians = [decode_speed(PI5, big, "llama.cpp", threads=n).median for n in (1, 2, 3, 4)]
    assert medians == sorted(medians)
    assert medians[3] / medians[0] < 4  # the memory is shared


def test_more_threads_than_cores_do_not_help() -> None:
    four = decode_speed(PI5, LLAMA_1B, "llama.cpp", threads=4).median
    assert decode_speed(PI5, LLAMA_1B, "llama.cpp", threads=8).median < four


def test_a_long_context_reads_its_keys_and_values() -> None:
    short = named_workload("Llama 3.2 1B", "Q4_0", depth=0)
    deep = named_workload("Llama 3.2 1B", "Q4_0", depth=32768)
    assert short.kv_bytes == 0 and deep.kv_bytes == 32768 * 2 * 2 * 16 * 8 * 64
    assert decode_speed(PI5, deep, "x").median < 0.7 * decode_speed(PI5, short, "x").median


def test_a_measured_bandwidth_narrows_the_interval() -> None:
    known = replace(PI5, family="never-seen", read_gbps=11.0)
    unknown = replace(PI5, family="never-seen")
    big = named_workload("Llama 3.1 8B", "Q8_0")
    assert (
        decode_speed(known, big, "llama.cpp").width < decode_speed(unknown, big, "llama.cpp").width
    )


def test_a_class_never_seen_has_a_wider_interval() -> None:
    new = replace(PI5, family="never-seen")
    assert decode_speed(new, LLAMA_1B, "ollama").width > decode_speed(PI5, LLAMA_1B, "ollama").width


def test_prompts_wait_for_arithmetic() -> None:
    slow = replace(PI5, ghz=PI5.ghz / 2)
    ratio = prefill_speed(PI5, LLAMA_1B, "x").median / prefill_speed(slow, LLAMA_1B, "x").median
    assert 1.8 < ratio <= 2.0
    one = prefill_speed(PI5, LLAMA_1B, "x", tokens=1).median
    assert one < prefill_speed(PI5, LLAMA_1B, "x", tokens=512).median


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        ("Qwen3-30B-A3B-Instruct", 30.5, 3.1),
        ("granite-3.1-1b-a400m", 1.0, 0.4),
        ("Some-16B-A2.5B", 16, 2.5),
        ("Mixtral 8x7B", 46.7, 12.8),
        ("gemma-4-E2B-it", 5.1, 2.7),
        ("llama-2-7b-chat-hf", 6.74, 6.6),
        ("smollm2:135m", 0.135, 0.135),
        ("MiniCPM3-4B", 4.0, 4.0),
    ],
)
def test_names_tell_sizes(name: str, total: float, active: float) -> None:
    shape = find_model(name)
    assert shape is not None
    assert shape.total == pytest.approx(total, rel=0.02)
    assert shape.active == pytest.approx(active, rel=0.02)


def test_a_mixture_reads_its_active_part_of_the_file() -> None:
    moe = named_workload("Qwen3-30B-A3B", "Q4_K_M", billions=30.5, file_gib=17.3)
    assert moe.read_bytes == pytest.approx(17.3 * 2**30 * 3.1 / 30.5)
    assert moe.file_bytes == 17.3 * 2**30


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("Q4_K_M", 4.87), ("UD-Q4_K_XL", 5.0), ("Q8_0", 8.5), ("F16", 16), ("w8a8", 8.5),
        ("w4a16", 4.6), ("W16A16", 16), ("INT4-MIXED", 4.9), ("INT8-CW", 8.5), ("HQQ 4bit", 4.6),
        ("Q4_K_S 3.87bpw", 3.87), ("4-bit (Q4_0 assumed)", 4.6), ("2-bit (Q2_K)", 3.4),
        ("int4 RTN b32 acc4", 4.6), ("IQ4_XS", 4.5), ("MXFP4", 4.4),
    ],
)  # fmt: skip
def test_quantizations_as_people_write_them(text: str, bits: float) -> None:
    known = read_quantization(text)
    assert known is not None and known[0] == bits


def test_what_is_not_known_is_refused_in_a_sentence() -> None:
    with pytest.raises(InputError, match="size of Mystery is not known"):
        named_workload("Mystery", "Q4_0")
    with pytest.raises(InputError, match="'not stated' is not known"):
        named_workload("Qwen3-1.7B", "not stated")
    with pytest.raises(InputError, match="no known class and has no bandwidth"):
        hardware_of("Toaster", "Crumb 1", "llama.cpp")
    assert hardware_of("Toaster", "Crumb 1", "llama.cpp", mem_bw_gbps=10).family == "unknown"


@pytest.mark.parametrize(
    ("device", "soc", "runtime", "backend", "family"),
    [
        ("Raspberry Pi 5 16GB", "BCM2712", "Ollama (llama.cpp CPU)", "cpu", "a76"),
        ("Jetson Orin Nano 8GB", "Orin Nano", "Ollama", "gpu", "orin"),
        ("Jetson AGX Orin", "AGX Orin", "llama.cpp CPU (mid-2024)", "cpu", "a78"),
        ("Apple M3 Pro (18 GPU)", "Apple M3 Pro", "llama.cpp Metal", "gpu", "apple"),
        ("RK3588 board", "RK3588", "RKLLM NPU", "npu", "rknpu"),
        ("OnePlus 12", "SM8650", "llama.cpp CPU (2024-08)", "cpu", "cortex-x"),
        ("Framework 16", "Ryzen 7 7840HS", "llama.cpp Vulkan", "gpu", "radeon"),
        ("HP Laptop", "Core i5-1135G7", "llama.cpp CPU", "cpu", "intel-avx512"),
        ("Galaxy S23", "SM8550", "llama.cpp OpenCL", "gpu", "adreno"),
        ("Mini PC", "Intel N100", "llama.cpp", "cpu", "atom"),
    ],
)
def test_names_tell_the_hardware(
    device: str, soc: str, runtime: str, backend: str, family: str
) -> None:
    found = hardware_of(device, soc, runtime, mem_bw_gbps=50)
    assert (found.backend, found.family) == (backend, family)
    assert found.peak_gbps == 50


def test_runtimes_by_their_many_names() -> None:
    assert runtime_key("llama-cpp") == runtime_key("llama.cpp CUDA") == "llama.cpp"
    assert runtime_key("llama.cpp CPU (mid-2024)") == "llama.cpp-2024"
    assert runtime_key("ik_llama.cpp CPU") == "ik_llama.cpp"
    assert runtime_key("Ollama (llama.cpp CPU)") == "ollama"
    assert runtime_key("onnxruntime-genai CPU") == runtime_key("ort-genai") == "ort-genai"


def test_the_fit_finds_what_made_the_data() -> None:
    """Speeds made with a share of 0.42, by two sources that differ by 5%."""
    board = Hardware("cpu", "testcore", peak_gbps=20, cores=4, ghz=2.0)
    truth = {"cpu.share": math.log(0.42), "cpu.share/family=testcore": 0.0}

    def get(name: str) -> float:
        return truth.get(name, prior(name)[0])

    observations = []
    for index, size in enumerate((0.5, 1, 2, 4, 8, 0.7, 1.5, 3)):
        work = Workload(size * 1e9, size * 1e9, size * 1e9, 0, "q8")
        value = decode_log_speed(board, work, "llama.cpp", 4, get) + (-1) ** index * 0.025

        def formula(look: object, work: Workload = work) -> float:
            return decode_log_speed(board, work, "llama.cpp", 4, look)  # type: ignore[arg-type]

        observations.append(Observation(value, formula, "cpu", f"source {index % 2}"))
    fitted = fit(observations, "decode")
    unseen = Workload(1.2e9, 1.2e9, 1.2e9, 0, "q8")
    want = math.exp(decode_log_speed(board, unseen, "llama.cpp", 4, get))
    got = decode_speed(board, unseen, "llama.cpp", threads=4, fitted=fitted)
    assert got.median == pytest.approx(want, rel=0.06)
    assert want in got
    before = fit([], "decode")
    assert got.width < decode_speed(board, unseen, "llama.cpp", threads=4, fitted=before).width


def test_fitted_values_survive_their_file() -> None:
    shipped = load_fitted("decode")
    again = Fitted.from_record(shipped.record())
    assert again.names == shipped.names
    assert np.allclose(again.means, shipped.means, atol=1e-3)
    assert np.allclose(again.covariance, shipped.covariance, atol=2e-3)
    assert np.linalg.eigvalsh(again.covariance).min() > -1e-3


def test_the_shipped_values_are_those_of_the_shipped_rows() -> None:
    """Whoever changes a row or a formula has to run benchmarks/fit_prediction.py --write."""
    rows = [row for row in read_rows(ROWS) if isinstance(row, Row)]
    found = [o for row in rows if (o := observation(row, "decode")) is not None]
    npu = [o for o in found if o.backend == "npu"]
    shipped, again = load_fitted("decode"), fit(npu, "decode")
    assert len(found) > 150
    for name, mean in zip(again.names, again.means, strict=True):
        assert shipped.mean(name) == pytest.approx(float(mean), abs=2e-3), name


def test_known_rows_are_reproduced_and_the_interval_means_something() -> None:
    rows = [row for row in read_rows(ROWS) if isinstance(row, Row) and not row.suspect]
    scored = [s for row in rows if (s := score_row(row, "decode")) is not None]
    figures = summary(scored)
    assert figures["median_error"] < 0.15
    assert figures["p90_error"] < 0.5
    assert 0.75 < figures["coverage_80"] <= 1.0
    assert figures["median_interval_width"] < 3.0


@given(
    gbps=st.floats(0.5, 1000), cores=st.integers(1, 64), threads=st.integers(1, 256),
    size=st.floats(1e6, 1e12), depth=st.floats(0, 1e11),
    family=st.sampled_from(["a76", "oryon", "unknown"]),
    backend=st.sampled_from(["cpu", "gpu", "npu"]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_any_hardware_has_a_finite_interval(
    gbps: float, cores: int, threads: int, size: float, depth: float, family: str, backend: str
) -> None:
    hardware = Hardware(backend, family, gbps, cores=cores)  # type: ignore[arg-type]
    work = Workload(size, size, size, depth, "k")
    for speed in (
        decode_speed(hardware, work, "llama.cpp", threads=threads),
        prefill_speed(hardware, work, "llama.cpp", threads=threads),
    ):
        assert 0 < speed.low < speed.median < speed.high < math.inf


def test_memory_is_weights_cache_and_the_engine() -> None:
    need = memory_needed(10**9, 10**8, "gguf")
    assert need.total == need.weights + need.cache + need.overhead
    assert memory_needed(10**9, 10**8, "onnx").cache == 2 * need.cache
