"""Devices known by name: what they are made of, and what to run on them.

A profile is a YAML file in device_profiles/. Every number in it states where it comes from, or
that it is an estimate; tables mark estimates with `~`.
"""

from __future__ import annotations

import difflib
import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import BaseModel, Field, field_validator, model_validator

from edgeadapt.errors import InputError
from edgeadapt.hardware import (
    Count,
    CpuFacts,
    Figure,
    GpuFacts,
    MemoryFacts,
    NpuFacts,
    Strict,
)
from edgeadapt.yaml_model import parse_yaml

_PACKAGE = "edgeadapt.device_profiles"


class Budgets(Strict):
    """What an app may ask for on this device, unless told otherwise."""

    max_memory_gib: Figure | None = None
    """Most memory for the model with its cache; beside `memory.model_share` the smaller counts."""
    min_decode_tps: Figure | None = None
    """Fewest decoded tokens a second."""
    max_ttft_s: Figure | None = None
    """Longest wait for the first token, seconds, after a prompt of 512 tokens."""


class Quantization(Strict):
    """A quantization to use, and why."""

    name: str
    reason: str


class RuntimeChoice(Strict):
    """An engine for this device, with its quantizations in order of preference."""

    name: str
    format: Literal["gguf", "onnx"]
    backend: Literal["cpu", "gpu"] = "cpu"
    """What computes."""
    reason: str
    quantizations: tuple[Quantization, ...] = Field(min_length=1)
    session_options: dict[str, str] = Field({})
    """Entries for ONNX Runtime's session configuration; go into an export for this device."""


class DeviceProfile(Strict):
    """One device that runs models."""

    kind: ClassVar[Literal["runs-models"]] = "runs-models"
    name: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    title: str
    soc: str
    os: str
    cpu: CpuFacts
    memory: MemoryFacts
    gpu: GpuFacts | None = None
    npu: NpuFacts | None = None
    budgets: Budgets = Budgets()
    threads: Count
    """Threads to compute with."""
    context: Count
    """KV cache size in tokens when none is asked for."""
    runtimes: tuple[RuntimeChoice, ...] = Field(min_length=1)
    """In order of preference."""
    match: tuple[str, ...] = ()
    """Regular expressions, in lower case, of names that tables of measurements give it."""
    sources: dict[str, str] = Field({})
    """Short key -> where to look it up."""

    @field_validator("match")
    @classmethod
    def _are_patterns(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        return patterns

    @model_validator(mode="after")
    def _sources_are_named(self) -> Self:
        isa = self.cpu.isa_source
        _check_sources(self.figures(), self.sources, () if isa == "estimate" else (isa,))
        return self

    @model_validator(mode="after")
    def _gpu_is_there(self) -> Self:
        if self.gpu is None and any(choice.backend == "gpu" for choice in self.runtimes):
            raise ValueError("a runtime computes on the GPU, and there is no `gpu`")
        return self

    @property
    def fast_cores(self) -> int:
        """CPU cores that a model can count on."""
        return sum(int(core.count.value) for core in self.cpu.cores if not core.little)

    @property
    def model_budget_gib(self) -> float:
        """Memory that a model may take, in GiB."""
        return self.memory.ram_gib.value * self.memory.model_share.value

    def figures(self) -> list[tuple[str, Figure]]:
        """Every number of the profile under its path, such as `memory.ram_gib`."""
        return list(_figures("", self))


class OffloadClient(Strict):
    """A device that runs no language model: it asks another one, and its profile says so."""

    kind: ClassVar[Literal["offload"]] = "offload"
    name: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    title: str
    soc: str
    os: str
    offload: str
    """Why no model runs here, and what runs it instead."""
    hosts: tuple[str, ...] = ()
    """Profiles of devices that would run its model."""
    ram_gib: Figure | None = None
    gpu: str | None = None
    npu: str | None = None
    sources: dict[str, str] = Field({})

    @model_validator(mode="after")
    def _sources_are_named(self) -> Self:
        _check_sources(self.figures(), self.sources)
        return self

    def figures(self) -> list[tuple[str, Figure]]:
        """Every number of the profile under its path."""
        return list(_figures("", self))


def _check_sources(
    figures: list[tuple[str, Figure]], sources: dict[str, str], more: tuple[str, ...] = ()
) -> None:
    cited = {figure.source for _, figure in figures if figure.source} | set(more)
    if unknown := cited - sources.keys():
        raise ValueError(f"source {sorted(unknown)[0]!r} is not listed under `sources`")
    if unused := sources.keys() - cited:
        raise ValueError(f"source {sorted(unused)[0]!r} is listed and never cited")


def _figures(prefix: str, value: object) -> list[tuple[str, Figure]]:
    if isinstance(value, Figure):
        return [(prefix, value)]
    if isinstance(value, BaseModel):
        named = [(name, getattr(value, name)) for name in type(value).model_fields]
    elif isinstance(value, tuple):
        named = [(str(index), item) for index, item in enumerate(value)]
    else:
        return []
    return [
        found
        for name, item in named
        for found in _figures(f"{prefix}.{name}" if prefix else name, item)
    ]


def list_profiles() -> tuple[str, ...]:
    """Names of the profiles that come with edgeadapt, sorted."""
    folder = files(_PACKAGE)
    return tuple(
        sorted(
            entry.name.removesuffix(".yaml")
            for entry in folder.iterdir()
            if entry.name.endswith(".yaml")
        )
    )


def load_profile(name: str) -> DeviceProfile:
    """A profile of a device that runs models, by name, or from a YAML file by its path.

    Raises:
        InputError: there is none of this name, the file is missing or malformed (names the field),
            or the device only asks others.
    """
    entry = load_entry(name)
    if isinstance(entry, OffloadClient):
        hosts = " or ".join(f"--device {host}" for host in entry.hosts)
        raise InputError(
            f"{entry.title} runs no model: {entry.offload}"
            + (f"; plan for what runs it: {hosts}" if hosts else "")
        )
    return entry


def load_entry(name: str) -> DeviceProfile | OffloadClient:
    """Any profile, also of a device that runs no model; otherwise as `load_profile`."""
    if name.endswith((".yaml", ".yml")):
        return read_entry(Path(name))
    known = list_profiles()
    if name not in known:
        close = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)};"
        raise InputError(
            f"there is no device profile {name!r}; {hint} `edgeadapt devices list` shows all, "
            "and a path to a .yaml file works too"
        )
    return _shipped(name)


@cache
def _shipped(name: str) -> DeviceProfile | OffloadClient:
    text = (files(_PACKAGE) / f"{name}.yaml").read_text(encoding="utf-8")
    return parse_entry(text, f"{name}.yaml")


def read_entry(path: Path) -> DeviceProfile | OffloadClient:
    """Read and check a profile file; raises as `load_profile` does."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text; expected a device profile in YAML") from error
    return parse_entry(text, str(path))


def parse_entry(text: str, origin: str) -> DeviceProfile | OffloadClient:
    """Check the text of a profile; `origin` names it in errors. `offload:` tells the two apart.

    Raises:
        InputError: it is not YAML, or a field is missing, unknown or wrong; names the first.
    """
    if re.search(r"^offload\s*:", text, re.MULTILINE):
        return parse_yaml(text, origin, OffloadClient)
    return parse_yaml(text, origin, DeviceProfile)
