"""What the planner picks, why, and what it says when nothing fits."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeadapt.devices import DeviceProfile, load_profile
from edgeadapt.errors import InputError
from edgeadapt.planner import (
    BITS_PER_WEIGHT,
    Budget,
    ModelFacts,
    choose,
    default_budget,
    make_plan,
)
from edgeadapt.prediction.memory import memory_needed

SMOLLM2 = ModelFacts(134_515_008, 134_515_008, 30 * 2 * 3 * 64 * 2)
LLAMA_8B = ModelFacts(8_030_000_000, 7_505_000_000, 32 * 2 * 8 * 128 * 2)


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
    choice = choose(load_profile(device), SMOLLM2)
    taken = (choice.format, choice.quantization, choice.runtime, choice.threads, choice.context)
    assert taken == expected


def test_the_reason_reads_as_sentences() -> None:
    profile = load_profile("raspberry-pi-5")
    reason = choose(profile, SMOLLM2).reason
    assert reason.startswith("gguf Q4_0 on llama-cpp for Raspberry Pi 5: ")
    assert profile.runtimes[0].quantizations[0].reason in reason
    assert "of the 2.8 GiB" in reason
    assert "tokens a second" in reason
    assert "--prefer quality" in reason  # Q8_0 keeps the budgets as well
    assert reason.endswith(".")


def test_what_does_not_fit_is_passed_over_and_named() -> None:
    profile = with_ram("laptop-x86", 10.6)  # 5.3 GiB for the model: Q4_K_M needs 5.4, Q4_0 5.1
    choice = choose(profile, LLAMA_8B)
    assert choice.quantization == "Q4_0"
    assert "(gguf Q4_K_M would not fit)" in choice.reason
    assert choice.memory_gib <= profile.model_budget_gib


def test_nothing_fits() -> None:
    with pytest.raises(InputError, match=r"gguf Q4_0 comes closest and needs 4\.\d\d GiB") as error:
        choose(load_profile("meta-quest-3"), LLAMA_8B)
    assert "smaller base" in str(error.value)


def test_a_shorter_context_is_proposed_and_then_works() -> None:
    profile = load_profile("raspberry-pi-5")
    model = ModelFacts(4_000_000_000, 4_000_000_000, LLAMA_8B.kv_bytes_per_token)
    with pytest.raises(InputError, match=r"--context (\d+) or less") as error:
        choose(profile, model, context=32768)
    proposed = int(str(error.value).split("--context ")[1].split()[0])
    assert choose(profile, model, context=proposed).context == proposed
    with pytest.raises(InputError):
        choose(profile, model, context=proposed + 1)


def test_a_context_beyond_what_the_model_was_made_for() -> None:
    model = ModelFacts(10**8, 10**8, 1000, max_context=512)
    assert choose(load_profile("raspberry-pi-5"), model).context == 512
    with pytest.raises(InputError, match="made for 512 tokens, and --context asks for 513"):
        choose(load_profile("raspberry-pi-5"), model, context=513)


def test_a_quantization_of_unknown_size_is_refused() -> None:
    profile = load_profile("laptop-x86")
    first = profile.runtimes[0]
    odd = first.quantizations[0].model_copy(update={"name": "Q3_X"})
    runtime = first.model_copy(update={"quantizations": (odd,)})
    with pytest.raises(InputError, match=r"'Q3_X' is not known; choose from .*Q4_0"):
        choose(profile.model_copy(update={"runtimes": (runtime,)}), SMOLLM2)


def test_too_slow_is_passed_over_where_a_budget_asks() -> None:
    profile = load_profile("raspberry-pi-5")
    plan = make_plan(profile, LLAMA_8B, budget=Budget(8.0, min_decode_tps=50))
    assert plan.chosen is None
    assert "too slow" in plan.reason and "of 50 asked for" in plan.reason
    assert all("min_decode_tps" in c.missed for c in plan.found)
    wait = make_plan(profile, LLAMA_8B, budget=Budget(8.0, max_ttft_s=0.1))
    assert wait.chosen is None and "--max-ttft" in wait.reason
    # Export for a device stays possible: it is for the user to judge whether slow is too slow.
    assert choose(with_ram("raspberry-pi-5", 16), LLAMA_8B).quantization == "Q4_0"


def test_a_sure_candidate_goes_before_an_unsure_one() -> None:
    profile = load_profile("raspberry-pi-5")
    speeds = {c.quantization: c.decode for c in make_plan(profile, SMOLLM2).found}
    asked = max(speeds["Q8_0"].low, speeds["Q4_0"].low) * 1.001
    plan = make_plan(profile, SMOLLM2, budget=Budget(2.8, min_decode_tps=asked))
    assert plan.chosen is not None
    assert "min_decode_tps" in plan.chosen.unsure
    assert "measure it there" in plan.reason


@pytest.mark.parametrize(
    ("prefer", "expected"),
    [("profile", "Q4_0"), ("quality", "Q8_0"), ("speed", "Q4_0"), ("memory", "Q4_0")],
)
def test_what_is_preferred_decides(prefer: str, expected: str) -> None:
    plan = make_plan(load_profile("raspberry-pi-5"), SMOLLM2, prefer=prefer)  # type: ignore[arg-type]
    assert plan.chosen is not None
    assert plan.chosen.quantization == expected


def test_flags_replace_the_profiles_budgets_and_never_exceed_the_ram() -> None:
    profile = load_profile("raspberry-pi-5")
    assert default_budget(profile).min_decode_tps == 2
    assert default_budget(profile, min_decode_tps=7).min_decode_tps == 7
    assert default_budget(profile, max_memory_gib=1.5).memory_gib == 1.5
    assert default_budget(profile, max_memory_gib=100).memory_gib == profile.model_budget_gib


def test_the_pareto_front_is_what_nothing_beats() -> None:
    plan = make_plan(load_profile("laptop-x86"), SMOLLM2)
    front = [c for c in plan.found if c.pareto]
    assert front
    for c in plan.found:
        beaten = any(
            o.memory.total <= c.memory.total
            and o.decode.median >= c.decode.median
            and o.loss.middle <= c.loss.middle
            and (o.memory.total, o.decode.median) != (c.memory.total, c.decode.median)
            for o in front
            if o.loss and c.loss and o is not c
        )
        assert c.pareto == (not beaten), c


def test_a_plan_as_json_has_intervals_alone() -> None:
    record = make_plan(load_profile("apple-m1"), LLAMA_8B).record()
    assert json.loads(json.dumps(record)) == record
    for candidate in record["candidates"]:
        for figure in ("decode_tps", "prefill_tps", "ttft_s", "perplexity_rise"):
            assert candidate[figure]["low"] <= candidate[figure]["high"]
    gpu = [c for c in record["candidates"] if c["backend"] == "gpu"]
    assert gpu and all(c["gpu_layers"] == "all" for c in gpu)


@given(
    parameters=st.integers(1, 10**11),
    kv=st.integers(0, 10**6),
    context=st.integers(1, 200_000),
    device=st.sampled_from(["laptop-x86", "raspberry-pi-5", "meta-quest-3"]),
)
@settings(max_examples=40, deadline=None)
def test_a_choice_fits_and_a_refusal_is_right(
    parameters: int, kv: int, context: int, device: str
) -> None:
    profile = load_profile(device)
    smallest = min(
        memory_needed(
            parameters * BITS_PER_WEIGHT[runtime.format, quantization.name] / 8,
            kv * context,
            runtime.format,
        ).gib
        for runtime in profile.runtimes
        for quantization in runtime.quantizations
    )
    try:
        choice = choose(profile, ModelFacts(parameters, parameters, kv), context=context)
    except InputError:
        assert smallest > profile.model_budget_gib
    else:
        assert choice.memory_gib <= profile.model_budget_gib + 0.001
        assert choice.context == context


def test_block_types_take_what_their_layout_says() -> None:
    import gguf

    for name in ("Q8_0", "Q6_K", "F16", "BF16", "F32"):
        weights, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
        assert math.isclose(BITS_PER_WEIGHT["gguf", name], 8 * size / weights)
