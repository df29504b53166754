"""Profiles: complete, sourced, and refused in one sentence when they are wrong."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from edgeadapt.cli import cli
from edgeadapt.devices import (
    DeviceProfile,
    list_profiles,
    load_profile,
    parse_profile,
    read_profile,
)
from edgeadapt.errors import InputError
from edgeadapt.planner import BITS_PER_WEIGHT
from edgeadapt.runtimes.registry import get_runtime

NAMES = ("laptop-x86", "meta-quest-3", "raspberry-pi-5")


def raw(name: str = "raspberry-pi-5") -> dict[str, Any]:
    """A shipped profile as plain data, to be broken by a test."""
    data: dict[str, Any] = yaml.safe_load(
        yaml.safe_dump(load_profile(name).model_dump(mode="json"))
    )
    return data


def refused(data: dict[str, Any]) -> str:
    with pytest.raises(InputError) as caught:
        parse_profile(yaml.safe_dump(data), "board.yaml")
    message = str(caught.value)
    assert message.startswith("board.yaml: ")
    assert "\n" not in message
    return message


def test_the_shipped_profiles() -> None:
    assert list_profiles() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_profile_is_complete(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    for path, figure in profile.figures():
        assert figure.estimate != (figure.source in profile.sources), path
    for choice in profile.runtimes:
        assert choice.format in get_runtime(choice.name).formats
        for quantization in choice.quantizations:
            assert (choice.format, quantization.name) in BITS_PER_WEIGHT
            assert len(quantization.reason.split()) > 3


def test_figures_finds_every_number() -> None:
    paths = {path for path, _ in load_profile("raspberry-pi-5").figures()}
    assert paths == {
        "cpu.cores.0.count", "cpu.cores.0.ghz", "memory.ram_gib", "memory.peak_gbps",
        "memory.streaming_gbps", "memory.model_share", "threads", "context",
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_survives_writing_and_reading(name: str, tmp_path: Path) -> None:
    path = tmp_path / "copy.yaml"
    path.write_text(yaml.safe_dump(raw(name)))
    assert load_profile(str(path)) == load_profile(name)
    assert read_profile(path) == load_profile(name)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("rasberry-pi5", "raspberry-pi-5"), ("Quest-3", "meta-quest-3"), ("laptop", "laptop-x86")],
)
def test_a_misspelt_name_is_answered_with_the_right_one(typed: str, meant: str) -> None:
    with pytest.raises(InputError, match=f"did you mean .*{meant}"):
        load_profile(typed)


@pytest.mark.parametrize("name", ["toaster", "", "../pyproject.toml", "laptop-x86/"])
def test_an_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="no device profile"):
        load_profile(name)


def test_a_number_needs_a_source_or_a_mark() -> None:
    data = raw()
    data["threads"] = {"value": 4}
    assert "threads: give a `source`, or else `estimate: true`" in refused(data)
    data["threads"] = {"value": 4, "source": "potato", "estimate": True}
    assert "threads" in refused(data)
    data["threads"] = 4
    assert "threads" in refused(data)


def test_sources_are_cited_and_listed() -> None:
    data = raw()
    data["threads"] = {"value": 4, "source": "hearsay"}
    assert "'hearsay' is not listed" in refused(data)
    data = raw()
    data["sources"]["spare"] = "somewhere"
    assert "'spare' is listed and never cited" in refused(data)


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (("memory", "model_share", "value"), 1.5, "memory.model_share: must be a fraction"),
        (("memory", "ram_gib", "value"), -4, "memory.ram_gib.value"),
        (("memory", "ram_gib", "value"), float("nan"), "memory.ram_gib.value"),
        (("threads", "value"), 2.5, "threads.value: must be a whole number"),
        (("cpu", "arch"), "sparc", "cpu.arch"),
        (("cpu", "colour"), "green", "cpu.colour"),
        (("runtimes",), [], "runtimes"),
        (("name",), "Raspberry Pi", "name"),
    ],
)
def test_a_wrong_field_is_named(path: tuple[str, ...], value: object, expected: str) -> None:
    data = raw()
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    assert expected in refused(data)


def test_a_missing_field_is_named() -> None:
    data = raw()
    del data["memory"]["peak_gbps"]
    assert "memory.peak_gbps: Field required" in refused(data)


@pytest.mark.parametrize(
    "text", ["name: [1", "a: b: c", "\t", "- 1", "", "d: 2020-13-45", "[" * 5000]
)
def test_text_that_is_no_profile_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"^x\.yaml is not"):
        parse_profile(text, "x.yaml")


@given(st.text(max_size=200))
def test_any_text_is_a_profile_or_an_input_error(text: str) -> None:
    with contextlib.suppress(InputError):
        assert isinstance(parse_profile(text, "x.yaml"), DeviceProfile)


def test_missing_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*none\.yaml"):
        load_profile(str(tmp_path / "none.yaml"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        load_profile(str(tmp_path / "binary.yaml"))


def run(*arguments: str) -> str:
    result = CliRunner().invoke(cli, ["devices", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_list_marks_estimates() -> None:
    text = run("list")
    line = next(line for line in text.splitlines() if line.startswith("meta-quest-3"))
    assert line.split()[1:4] == ["~8", "~67.2", "~2"]
    line = next(line for line in text.splitlines() if line.startswith("raspberry-pi-5"))
    assert line.split()[2:4] == ["11.4", "4"]
    assert "~ an estimate" in text


@pytest.mark.parametrize("name", NAMES)
def test_show_fits_the_terminal_and_gives_every_source(name: str) -> None:
    text = run("show", name)
    assert max(map(len, text.splitlines())) <= 80
    flat = " ".join(text.split())
    profile = load_profile(name)
    for source in profile.sources.values():
        assert " ".join(source.split()) in flat
    for _, figure in profile.figures():
        assert str(figure) in flat


@pytest.mark.parametrize(
    "arguments", [("list",), ("--help",), ("list", "--help"), ("show", "--help")]
)
def test_everything_else_fits_too(arguments: tuple[str, ...]) -> None:
    assert max(map(len, run(*arguments).splitlines())) <= 80


def test_json() -> None:
    listed = json.loads(run("list", "--json"))
    assert [profile["name"] for profile in listed] == list(NAMES)
    assert json.loads(run("show", "laptop-x86", "--json")) == listed[0]


def test_validate(tmp_path: Path) -> None:
    path = tmp_path / "board.yaml"
    path.write_text(yaml.safe_dump(raw()))
    assert "valid, raspberry-pi-5; 4 of its figures are estimates" in run("validate", str(path))
    assert len(json.loads(run("validate", str(path), "--json"))["estimates"]) == 4
    path.write_text(yaml.safe_dump(raw() | {"threads": 4}))
    result = CliRunner().invoke(cli, ["devices", "validate", str(path)])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
