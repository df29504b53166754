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
    OffloadClient,
    list_profiles,
    load_entry,
    load_profile,
    parse_entry,
    read_entry,
)
from edgeadapt.errors import InputError
from edgeadapt.planner import BITS_PER_WEIGHT
from edgeadapt.runtimes.registry import get_runtime

OFFLOAD = ("ar1-glasses", "ar2-glasses")
NAMES = tuple(name for name in list_profiles() if name not in OFFLOAD)
SHOWN = ("apple-m1", "hololens-2", "jetson-orin-nano", "laptop-x86", "raspberry-pi-5")


def raw(name: str = "raspberry-pi-5") -> dict[str, Any]:
    """A shipped profile as plain data, to be broken by a test."""
    data: dict[str, Any] = yaml.safe_load(
        yaml.safe_dump(load_profile(name).model_dump(mode="json"))
    )
    return data


def refused(data: dict[str, Any]) -> str:
    with pytest.raises(InputError) as caught:
        parse_entry(yaml.safe_dump(data), "board.yaml")
    message = str(caught.value)
    assert message.startswith("board.yaml: ")
    assert "\n" not in message
    return message


def test_the_shipped_profiles() -> None:
    assert len(list_profiles()) >= 20
    promised = {
        "laptop-x86", "laptop-avx512-vnni", "intel-core-ultra-155h", "ryzen-ai-9-hx-370",
        "apple-m1", "apple-m2", "apple-m3", "apple-m4", "snapdragon-x-elite", "raspberry-pi-4",
        "raspberry-pi-5", "orange-pi-5", "jetson-orin-nano", "jetson-orin-nano-super",
        "jetson-agx-orin", "android-sd-8-gen-2", "android-sd-8-gen-3", "meta-quest-2",
        "meta-quest-3", "meta-quest-pro", "samsung-galaxy-xr", "hololens-2", "apple-vision-pro",
        "ar1-glasses",
    }  # fmt: skip
    assert promised <= set(list_profiles())


@pytest.mark.parametrize("name", OFFLOAD)
def test_an_offload_client_says_so_and_names_hosts(name: str) -> None:
    entry = load_entry(name)
    assert isinstance(entry, OffloadClient)
    for host in entry.hosts:
        assert load_profile(host).runtimes
    with pytest.raises(InputError, match=rf"runs no model: .*--device {entry.hosts[0]}"):
        load_profile(name)
    assert "no model" in run("show", name)
    assert json.loads(run("show", name, "--json"))["kind"] == "offload"


def test_patterns_name_one_profile_each() -> None:
    from edgeadapt.prediction import hardware_of

    for name in NAMES:
        profile = load_profile(name)
        assert profile.match, name
        found = hardware_of(profile.title, profile.soc, "llama.cpp CPU")
        assert found.basis == f"profile {name}"


def test_a_gpu_has_memory_of_its_kind() -> None:
    data = raw("jetson-orin-nano")
    data["gpu"]["unified_memory"] = False
    assert "separate memory needs `memory_gib`" in refused(data)
    data["gpu"]["memory_gib"] = {"value": 8, "estimate": True}
    assert isinstance(parse_entry(yaml.safe_dump(data), "x.yaml"), DeviceProfile)
    data["gpu"]["unified_memory"] = True
    assert "leave out `memory_gib`" in refused(data)
    del data["gpu"]
    assert "there is no `gpu`" in refused(data)


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
        "memory.streaming_gbps", "memory.model_share", "budgets.min_decode_tps", "threads",
        "context",
    }  # fmt: skip


@pytest.mark.parametrize("name", SHOWN)
def test_a_profile_survives_writing_and_reading(name: str, tmp_path: Path) -> None:
    path = tmp_path / "copy.yaml"
    path.write_text(yaml.safe_dump(raw(name)))
    assert load_profile(str(path)) == load_profile(name)
    assert read_entry(path) == load_profile(name)


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
        parse_entry(text, "x.yaml")


@given(st.text(max_size=200))
def test_any_text_is_a_profile_or_an_input_error(text: str) -> None:
    with contextlib.suppress(InputError):
        assert isinstance(parse_entry(text, "x.yaml"), DeviceProfile)


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


@pytest.mark.parametrize("name", SHOWN)
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
    names = [profile["name"] for profile in listed]
    assert names == list(list_profiles())
    assert json.loads(run("show", "laptop-x86", "--json")) == listed[names.index("laptop-x86")]
    assert "memory.ram_gib" in listed[names.index("laptop-x86")]["estimates"]


def test_validate(tmp_path: Path) -> None:
    path = tmp_path / "board.yaml"
    path.write_text(yaml.safe_dump(raw()))
    assert "valid, raspberry-pi-5; 5 of its figures are estimates" in run("validate", str(path))
    assert len(json.loads(run("validate", str(path), "--json"))["estimates"]) == 5
    path.write_text(yaml.safe_dump(raw() | {"threads": 4}))
    result = CliRunner().invoke(cli, ["devices", "validate", str(path)])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
