"""Recipes say what they mean, or are refused with the field named."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from edgeadapt.cli import cli
from edgeadapt.errors import EdgeAdaptError, InputError
from edgeadapt.recipe import BUILT_IN, load_recipe, parse_recipe

GOOD = """
name: mine
base: default
data: {train: python-docs}
train: {method: lora, max_steps: 3}
export:
  - device: laptop-x86
  - {format: gguf, quantization: Q8_0}
"""


def test_a_recipe_is_read() -> None:
    recipe = parse_recipe(GOOD, "mine.yaml")
    assert recipe.train is not None and recipe.train.max_steps == 3
    assert recipe.export[1].quantization == "Q8_0"


@pytest.mark.parametrize("name", BUILT_IN)
def test_some_come_with_the_package(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe(name).name == name


def test_a_shown_recipe_is_the_same_when_it_is_run(tmp_path: Path) -> None:
    shown = CliRunner().invoke(cli, ["run", "instruct", "--show"])
    assert shown.exit_code == 0
    (tmp_path / "mine.yaml").write_text(shown.stdout)
    recipe = load_recipe(str(tmp_path / "mine.yaml"))
    assert recipe == load_recipe("instruct")
    assert recipe.train is not None and recipe.train.packing and recipe.train.system
    assert "# <-" in shown.stdout  # the comments that say what to change are there


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("name: mine", "name: ../mine", "names a folder"),
        ("name: mine\n", "", "name"),
        ("base: default", "bass: default", "bass"),
        ("max_steps: 3", "max_steps: none", "train.max_steps"),
        ("method: lora", "method: magic", "train.method"),
        ("method: lora", "method: prefix", "prefix changes no weight"),
        ("{train: python-docs}", "{}", "data.train"),
        ("device: laptop-x86", "format: gguf", "export.0"),
        ("device: laptop-x86", "{device: a, format: gguf}", "export.0"),
        ("device: laptop-x86", "{format: gguf, max_size: lots}", "such as 80MiB"),
        ("device: laptop-x86", "{format: onnx, max_size: 80MiB}", "format gguf"),
        ("device: laptop-x86", "{format: gguf, quantization: Q4_0, max_size: 9M}", "one of"),
        ("device: laptop-x86", "{device: a, max_size: 80MiB}", "not both"),
        ("export:", "adapter: x\nexport:", "not both"),
        ("name: mine", "- name: [", "not valid YAML"),
    ],
)
def test_what_is_wrong_is_named(old: str, new: str, words: str) -> None:
    text = GOOD.replace(old, new)
    assert text != GOOD
    with pytest.raises(InputError, match=words):
        parse_recipe(text, "mine.yaml")


@pytest.mark.parametrize("text", ["", "3", "[]", "just words"])
def test_not_a_recipe(text: str) -> None:
    with pytest.raises(InputError, match=r"mine\.yaml"):
        parse_recipe(text, "mine.yaml")


def test_no_such_recipe() -> None:
    with pytest.raises(InputError, match="demo"):
        load_recipe("nowhere.yaml")


@given(st.text())
def test_any_text_is_a_recipe_or_an_error(text: str) -> None:
    with contextlib.suppress(InputError):
        parse_recipe(text, "x")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@given(st.sampled_from(["name", "base", "data", "train", "export", "evaluate", "bench"]), JSON)
def test_any_value_of_a_field_is_taken_or_refused(field: str, value: object) -> None:
    document = yaml.safe_load(GOOD) | {field: value}
    with contextlib.suppress(EdgeAdaptError):
        parse_recipe(yaml.safe_dump(document, allow_unicode=True), "x")
