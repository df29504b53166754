"""What the planner picks, why, and what it says when nothing fits."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeadapt.devices import DeviceProfile, load_profile
from edgeadapt.errors import InputError
from edgeadapt.planner import BITS_PER_WEIGHT, choose, next_better

SMOLLM2 = {"parameters": 134_515_008, "kv_bytes_per_token": 30 * 2 * 3 * 64 * 2}
LLAMA_8B = {"parameters": 8_030_000_000, "kv_bytes_per_token": 32 * 2 * 8 * 128 * 2}


def with_ram(name: str, gib: float) -> DeviceProfile:
    profile = load_profile(name)
    ram = profile.memory.ram_gib.model_copy(update={"value": gib})
    memory = profile.memory.model_copy(update={"ram_gib": ram})
    return profile.model_copy(update={"memory": memory})


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("laptop-x86", ("gguf", "Q4_K_M", "llama-cpp", 8, 4096)),
        ("raspberry-pi-5", ("gguf", "Q4_0", "llama-cpp", 4, 2048)),
        ("meta-quest-3", ("onnx", "int4", "ort-genai", 2, 1024)),
    ],
)
def test_the_first_preference_is_taken_when_it_fits(
    device: str, expected: tuple[object, ...]
) -> None:
    choice = choose(load_profile(device), **SMOLLM2)
    taken = (choice.format, choice.quantization, choice.runtime, choice.threads, choice.context)
    assert taken == expected


def test_the_reason_reads_as_sentences() -> None:
    profile = load_profile("raspberry-pi-5")
    reason = choose(profile, **SMOLLM2).reason
    assert reason.startswith("gguf Q4_0 on llama-cpp for Raspberry Pi 5. ")
    assert profile.runtimes[0].quantizations[0].reason in reason
    assert "of the 2.8 GiB" in reason
    assert reason.endswith(".")


def test_what_does_not_fit_is_passed_over_and_named() -> None:
    profile = with_ram("laptop-x86", 10.2)  # 5.1 GiB for the model: Q4_K_M needs 5.3, Q4_0 5.0
    choice = choose(profile, **LLAMA_8B)
    assert choice.quantization == "Q4_0"
    assert "(gguf Q4_K_M would not fit)" in choice.reason
    assert choice.memory_gib <= profile.model_budget_gib


def test_nothing_fits() -> None:
    with pytest.raises(InputError, match=r"gguf Q4_0 comes closest and needs 4\.\d\d GiB") as error:
        choose(load_profile("meta-quest-3"), **LLAMA_8B)
    assert "smaller base" in str(error.value)


def test_a_shorter_context_is_proposed_and_then_works() -> None:
    profile = load_profile("raspberry-pi-5")
    model = {"parameters": 4_000_000_000, "kv_bytes_per_token": LLAMA_8B["kv_bytes_per_token"]}
    with pytest.raises(InputError, match=r"--context (\d+) or less") as error:
        choose(profile, **model, context=32768)
    proposed = int(str(error.value).split("--context ")[1].split()[0])
    assert choose(profile, **model, context=proposed).context == proposed
    with pytest.raises(InputError):
        choose(profile, **model, context=proposed + 1)


def test_a_quantization_of_unknown_size_is_refused() -> None:
    profile = load_profile("laptop-x86")
    first = profile.runtimes[0]
    odd = first.quantizations[0].model_copy(update={"name": "Q3_X"})
    runtime = first.model_copy(update={"quantizations": (odd,)})
    with pytest.raises(InputError, match=r"'Q3_X', whose size is not known; choose from .*Q4_0"):
        choose(profile.model_copy(update={"runtimes": (runtime,)}), **SMOLLM2)


@given(
    parameters=st.integers(1, 10**11),
    kv=st.integers(0, 10**6),
    context=st.integers(1, 200_000),
    device=st.sampled_from(["laptop-x86", "raspberry-pi-5", "meta-quest-3"]),
)
def test_a_choice_fits_and_a_refusal_is_right(
    parameters: int, kv: int, context: int, device: str
) -> None:
    profile = load_profile(device)
    smallest = min(
        parameters * BITS_PER_WEIGHT[runtime.format, quantization.name] / 8
        + kv * context * (2 if runtime.format == "onnx" else 1)
        for runtime in profile.runtimes
        for quantization in runtime.quantizations
    )
    budget = profile.model_budget_gib * 2**30
    try:
        choice = choose(profile, parameters=parameters, kv_bytes_per_token=kv, context=context)
    except InputError:
        assert smallest + 256 * 2**20 > budget
    else:
        assert choice.memory_gib <= profile.model_budget_gib + 0.001
        assert choice.context == context


def test_block_types_take_what_their_layout_says() -> None:
    import gguf

    for name in ("Q8_0", "Q6_K", "F16", "BF16", "F32"):
        weights, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
        assert math.isclose(BITS_PER_WEIGHT["gguf", name], 8 * size / weights)


def test_the_next_better_quantization_is_the_smallest_that_fits() -> None:
    def better(quantization: str, *profiles: DeviceProfile, size: float = 1.0) -> str | None:
        return next_better(
            "gguf", quantization, size_bytes=int(size), profiles=profiles, **LLAMA_8B
        )

    assert better("Q4_0") == "Q4_K_M"
    assert better("Q8_0") == "F16"
    assert better("F32") is None
    roomy, narrow = with_ram("laptop-x86", 64), with_ram("laptop-x86", 11.2)
    assert better("Q4_K_M", roomy) == "Q5_K_M"
    assert better("Q4_0", roomy, narrow) == "Q4_K_M"
    assert better("Q4_K_M", roomy, narrow) is None
    # a quantization that the table lacks has the bits of its file
    assert better("Q3_K_M", size=LLAMA_8B["parameters"] * 3.9 / 8) == "Q4_0"
    assert better("Q5_1", size=LLAMA_8B["parameters"] * 6.0 / 8) == "Q6_K"
