from __future__ import annotations

from typing import Any

import pytest

from edgeadapt.comparison.figures import contenders, forgetting, lead, outcome, plain_of, record
from edgeadapt.comparison.recipe import ComparisonRecipe
from edgeadapt.comparison.verdict import crossing, judge
from edgeadapt.devices import load_profile
from tests.comparison.trials import plain, trial

MIB = 1 << 20


def recipe(**changes: Any) -> ComparisonRecipe:
    values = {
        "name": "x", "base": "default", "data": {"train": "python-docs"},
        "methods": ["none", "lora"], "devices": ["raspberry-pi-5"],
    }  # fmt: skip
    return ComparisonRecipe.model_validate(values | changes)


def judged(*trials: dict[str, Any], device: str = "raspberry-pi-5", **changes: Any) -> Any:
    found = contenders([plain(), *trials])
    return judge(load_profile(device), found, recipe(**changes))


def test_gains_are_told_question_by_question() -> None:
    found = contenders([plain(noise=0.5), trial("lora", gain=1.0, lost=0.2)])
    base, lora = plain_of(found, "Q4_K_M"), found[1]
    gain = lead(lora, base, "likelihood")
    assert gain.value == pytest.approx(1.0, abs=0.2) and gain.low < gain.value < gain.high
    assert outcome(gain) == "better"
    assert forgetting(lora, base).value == pytest.approx(0.2, abs=0.2)
    assert record(lora, found, 134_515_008)["beside_base"] == "better"


def test_what_is_worse_than_the_base_is_said_to_be() -> None:
    found = contenders([plain(), trial("prompt", method="prompt", gain=-0.5, ship="separate")])
    assert outcome(lead(found[1], found[0], "likelihood")) == "worse"


def test_seeds_are_one_contender() -> None:
    found = contenders([plain(), *(trial("lora", gain=1, seed=seed) for seed in range(3))])
    assert [one.name for one in found] == ["none", "lora"]
    assert found[1].nll("domain").shape[0] == 3


def test_a_seed_that_failed_for_one_is_left_out_for_the_other() -> None:
    def seeds(label: str, *which: int) -> Any:
        trials = [trial(label, gain=1, noise=0.5 + seed, seed=seed) for seed in which]
        return contenders([plain(), *trials])[1]

    alone = lead(seeds("lora", 0), seeds("dora", 0), "likelihood")
    assert lead(seeds("lora", 0, 1), seeds("dora", 0, 2), "likelihood") == alone
    pair = lead(seeds("lora", 1, 2), seeds("dora", 1, 2), "likelihood")
    assert lead(seeds("lora", 0, 1, 2), seeds("dora", 2, 1), "likelihood") == pair
    apart = lead(seeds("lora", 0), seeds("dora", 1, 2), "likelihood")
    assert apart.low < apart.value < apart.high


def test_the_base_is_beside_every_seed() -> None:
    three = contenders([plain(seed=7), *(trial("lora", gain=1, seed=seed) for seed in range(3))])
    one = contenders([plain(seed=7), trial("lora", gain=1, seed=0)])
    gain, alone = (lead(found[1], found[0], "likelihood") for found in (three, one))
    assert gain.high - gain.low > alone.high - alone.low


def test_two_ways_to_ship_are_two_contenders() -> None:
    both = trial("lora", gain=1)
    both["entries"] += trial("lora", gain=1, ship="separate", beside=9 * MIB)["entries"]
    found = contenders([plain(), both])
    assert [one.name for one in found] == ["none", "lora, merged", "lora, separate"]
    assert (found[1].bytes_first, found[1].bytes_update) == (100 * MIB, 100 * MIB)
    assert (found[2].bytes_first, found[2].bytes_update) == (109 * MIB, 9 * MIB)


def test_a_clear_winner_is_taken_and_the_data_decide() -> None:
    choice = judged(trial("lora", gain=1.0), trial("full", method="full", gain=0.2))["choice"]
    assert choice["name"] == "lora"
    assert "the data decide" in choice["reason"] and not choice["undecided"]


def test_where_intervals_overlap_the_cheapest_is_taken_and_it_says_so() -> None:
    choice = judged(
        trial("full", method="full", gain=1.0, noise=0.5),
        trial("lora", gain=0.98, noise=0.5, ship="separate", beside=2 * MIB),
    )["choice"]
    assert choice["name"] == "lora"
    assert "data do not decide" in choice["reason"] and "full" in choice["reason"]


def test_a_longer_prompt_costs_time_on_the_device() -> None:
    """Retrieval that answers as well is slower, and its own break-even is told."""
    found = judged(
        trial("rag", method="rag", gain=1.0, noise=0.5, ship="separate", beside=MIB, prompt=900,
              training_s=None),
        trial("lora", gain=0.99, noise=0.5),
    )  # fmt: skip
    assert found["choice"]["name"] == "lora"
    rag = next(one for one in found["break_even"] if one["against"].startswith("rag"))
    low, high = (rag["queries"][end] for end in ("low", "high"))
    assert low["when"] == high["when"] == "after" and 0 < low["uses"] < high["uses"]
    assert rag["updates"]["when"] == "never"  # all of the model each time, against a megabyte


def test_nothing_better_than_the_base_means_the_base() -> None:
    choice = judged(trial("lora", gain=0.0, noise=0.5))["choice"]
    assert choice["name"] == "none" and "ship the base" in choice["reason"]


def test_what_does_not_fit_is_not_taken() -> None:
    found = judged(trial("lora", gain=1.0), trial("full", method="full", gain=2.0, size=64 << 30))
    assert found["choice"]["name"] == "lora"
    assert [one["fits"] for one in found["contenders"]] == [True, True, False]
    assert not any(one["against"].startswith("full") for one in found["break_even"])


def test_what_forgets_too_much_is_left_out() -> None:
    choice = judged(
        trial("full", method="full", gain=1.5, lost=1.0), trial("lora", gain=1.0),
        max_forgetting=0.3,
    )["choice"]  # fmt: skip
    assert choice["name"] == "lora" and choice["left_out"] == ["full"]
    choice = judged(
        trial("full", method="full", gain=1.5, lost=1.0), trial("lora", gain=-1.0),
        max_forgetting=0.3,
    )["choice"]  # fmt: skip
    assert choice["name"] == "none" and "that fits and may be chosen" in choice["reason"]


def test_a_task_can_decide() -> None:
    wish = {"evaluate": {"task": {"metric": "f1"}}, "judged_by": "task"}
    found = contenders([
        plain(task=[0.1, 0.3] * 20), trial("lora", gain=1, task=[0.1, 0.3] * 20),
        trial("ia3", method="ia3", gain=0.1, task=[0.7, 0.9] * 20),
    ])  # fmt: skip
    choice = judge(load_profile("raspberry-pi-5"), found, recipe(**wish))["choice"]
    assert choice["name"] == "ia3" and choice["gain"]["value"] == pytest.approx(0.6)


def test_the_front_has_no_contender_that_another_beats_everywhere() -> None:
    found = judged(
        trial("lora", gain=1.0), trial("dora", method="dora", gain=0.5, prompt=40, size=120 * MIB)
    )
    assert [one["pareto"] for one in found["contenders"]] == [True, True, False]


def test_a_few_bytes_do_not_decide() -> None:
    """Two merged files of one quantization differ in their names; the better model is taken."""
    found = judged(
        trial("full", method="full", gain=1.0, noise=0.5, size=100 * MIB, training_s=90),
        trial("lora", gain=1.1, noise=0.5, size=100 * MIB + 99, training_s=60),
    )
    assert found["choice"]["name"] == "lora" and "is the best of those" in found["choice"]["reason"]
    full = next(one for one in found["break_even"] if one["against"] == "full")
    assert full["updates"]["when"] == full["queries"]["median"]["when"] == "at once"


def test_the_same_model_in_more_bits_is_not_beaten_by_a_larger_gain_over_a_worse_base() -> None:
    found = contenders([
        plain(quantization="Q8_0"), plain(gain=-2.0, quantization="Q2_K"),
        trial("lora", gain=1.0, quantization="Q8_0"),
        trial("lora", gain=-0.5, quantization="Q2_K"),
    ])  # fmt: skip
    asked = recipe(quantizations=["Q8_0", "Q2_K"])
    result = judge(load_profile("raspberry-pi-5"), found, asked)
    assert (result["choice"]["name"], result["choice"]["quantization"]) == ("lora, Q8_0", "Q8_0")
    assert result["choice"]["gain"]["value"] == pytest.approx(1.0, abs=0.1)
    assert "over the plain base in Q8_0" in result["choice"]["reason"]
    records = {one.name: record(one, found, 134_515_008) for one in found}
    assert records["lora, Q2_K"]["gain"]["value"] == pytest.approx(1.5, abs=0.1)
    assert records["lora, Q2_K"]["ahead"]["value"] == pytest.approx(-0.5, abs=0.1)


def test_what_is_not_surely_better_than_the_base_is_not_preferred_for_being_cheap() -> None:
    choice = judged(
        trial("adapter", method="adapter", gain=0.3, noise=0.1, prompt=60),
        trial("ia3", method="ia3", gain=0.2, noise=1.5, prompt=20),
    )["choice"]
    assert choice["name"] == "adapter"
    assert "ia3" not in choice["undecided"]


def test_what_training_took_is_not_free_for_being_unknown() -> None:
    unknown = trial("dora", method="dora", gain=1.0, noise=0.5)
    unknown["training"] |= {"seconds": None, "resumed": True}
    found = judged(unknown, trial("lora", gain=1.0, noise=0.5))
    told = {one["against"]: one["queries"] for one in found["break_even"]}
    assert all(queries is None for queries in told.values()) or told["dora"] is None
    (dora,) = [one for one in contenders([unknown]) if one.method == "dora"]
    assert dora.work_s is None and dora.trained is not None and dora.trained["resumed"]


def test_sweeps_and_searches_count_as_work() -> None:
    swept = trial("lora", gain=1)
    swept["training"]["sweep"] = {"seconds": 500.0}
    searched = trial("few-shot", method="few-shot", training_s=None) | {"prompting_s": 48.0}
    works = [one.work_s for one in contenders([plain(), swept, searched])]
    assert works == [0.0, 560.0, 48.0]


def test_more_contenders_need_more_to_be_told_apart() -> None:
    """Ten alike: rarely is one called surely worse than the best, which chance made so."""
    excluded = 0
    for number in range(20):
        alike = [trial(f"{number}-{i}", gain=1.0, noise=0.5) for i in range(10)]
        excluded += len(judged(*alike)["choice"]["undecided"]) < 9
    assert excluded <= 4


def test_a_prompt_beyond_the_models_context_does_not_fit() -> None:
    found = judged(
        trial("rag", method="rag", gain=2.0, prompt=9000, ship="separate", beside=MIB,
              training_s=None),
        trial("lora", gain=1.0),
    )  # fmt: skip
    assert found["choice"]["name"] == "lora"
    assert [one["fits"] for one in found["contenders"]] == [True, False, True]


@pytest.mark.parametrize(
    ("costs", "when", "uses"),
    [
        ((60, 1.0, 6000, 1.0001), "at once", None),
        ((60, 1.0001, 6000, 1.0), "at once", None),  # alike for each use
        ((6000, 1.0, 60, 1.0), "never", None),
        ((100, 2.0, 10, 3.0), "after", 90.0),
        ((10, 3.0, 100, 2.0), "until", 90.0),
        ((0, 0, 0, 0), "at once", None),
        ((0, 1.0, 0, 2.0), "at once", None),
        ((5, 2.0, 0, 1.0), "never", None),
    ],
)
def test_break_even(costs: tuple[float, float, float, float], when: str, uses: Any) -> None:
    assert crossing(*costs) == {"when": when, "uses": uses}
