from __future__ import annotations

from typing import Any

import pytest
import yaml

from edgeadapt.comparison.recipe import ComparisonRecipe, load_comparison
from edgeadapt.errors import InputError
from edgeadapt.yaml_model import parse_yaml

VALUES = {
    "name": "x", "base": "default", "data": {"train": "python-docs"},
    "methods": ["none", "few-shot", "rag", "lora"], "devices": ["laptop-x86"],
}  # fmt: skip


def read(**changes: Any) -> ComparisonRecipe:
    return parse_yaml(yaml.safe_dump(VALUES | changes), "r.yaml", ComparisonRecipe)


def test_a_method_is_a_name_or_a_section() -> None:
    found = read(methods=["none", {"method": "lora", "name": "big", "train": {"r": 64}}])
    assert [wish.label for wish in found.methods] == ["none", "big"]
    assert found.settings(found.methods[1], 7).r == 64
    assert found.settings(found.methods[1], 7).seed == 7


def test_settings_of_a_method_win_over_those_of_all() -> None:
    found = read(
        train={"r": 4, "max_steps": 9}, methods=["none", {"method": "lora", "train": {"r": 8}}]
    )
    settings = found.settings(found.methods[1], 0)
    assert (settings.r, settings.max_steps) == (8, 9)


def test_every_seed_and_share_is_tried_where_it_changes_anything() -> None:
    found = read(seeds=[0, 1], fractions=[0.5, 1.0], data={"train": "d", "documents": "docs"})
    told = [(t.wish.label, t.seed, t.fraction) for t in found.trials()]
    assert told.count(("none", 0, 1.0)) == 1 and len([t for t in told if t[0] == "none"]) == 1
    assert len([t for t in told if t[0] == "rag"]) == 1  # from its own documents
    assert len([t for t in told if t[0] == "few-shot"]) == 4
    assert len([t for t in told if t[0] == "lora"]) == 4
    assert len(set(told)) == len(told)
    shared = read(fractions=[0.5, 1.0])
    assert len([t for t in shared.trials() if t.wish.label == "rag"]) == 2  # from the training data


def test_shares_that_differ_little_are_two_trials() -> None:
    found = read(methods=["none", "lora"], fractions=[0.1234567, 0.1234568])
    slugs = [trial.slug for trial in found.trials()]
    assert len(set(slugs)) == len(slugs) == 3


def test_a_share_for_retrieval_is_drawn_by_every_seed() -> None:
    found = read(methods=["none", "rag"], fractions=[0.5, 1.0], seeds=[0, 1, 2])
    told = [(t.seed, t.fraction) for t in found.trials() if t.wish.label == "rag"]
    assert told == [(0, 0.5), (1, 0.5), (2, 0.5), (0, 1.0)]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"methods": ["lora"]}, "`none`"),
        ({"methods": ["none", "lora", "lora"]}, "one name"),
        (
            {
                "methods": [
                    "none",
                    {"method": "lora", "name": "a b"},
                    {"method": "ia3", "name": "a-b"},
                ]
            },
            "one name",
        ),
        ({"methods": ["none", "magic"]}, "methods"),
        ({"methods": ["none", {"method": "full", "ship": ["separate"]}]}, "cannot ship separate"),
        ({"methods": ["none", {"method": "prefix", "ship": ["merged"]}]}, "cannot ship merged"),
        ({"methods": ["none", {"method": "rag", "train": {"r": 1}}]}, "trains nothing"),
        ({"methods": ["none", {"method": "lora", "train": {"rank": 1}}]}, "lora: .*rank"),
        ({"fractions": [0.0]}, "share"),
        ({"seeds": [1, 1]}, "seeds has a value twice"),
        (
            {"methods": ["none", {"method": "lora", "ship": ["merged", "merged"]}]},
            "ship has a value twice",
        ),
        (
            {
                "methods": [
                    "none",
                    {"method": "lora", "ship": ["merged", "separate"]},
                    {"method": "dora", "name": "lora, merged"},
                ]
            },
            "two contenders would be called 'lora, merged'",
        ),
        ({"judged_by": "task"}, "needs evaluate.task"),
        ({"train": {"system": "Be brief."}}, "put the system prompt into the data"),
        ({"devices": []}, "devices"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        read(**changes)


def test_the_built_in_comparison_has_eight_methods_and_two_devices() -> None:
    found = load_comparison("compare-demo")
    assert len({wish.method for wish in found.methods}) >= 8
    assert found.devices == ("laptop-x86", "raspberry-pi-5")


def test_an_unknown_recipe_is_one_sentence() -> None:
    with pytest.raises(InputError, match="compare-demo"):
        load_comparison("nothing-here")
