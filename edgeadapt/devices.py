"""Devices known by name: what they are made of, and what to run on them.

A profile is a YAML file in device_profiles/. Every number in it states where it comes from, or
that it is an estimate; tables mark estimates with `~`.
"""

from __future__ import annotations

import difflib
from importlib.resources import files
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from edgeadapt.errors import InputError
from edgeadapt.yaml_model import parse_yaml

_PACKAGE = "edgeadapt.device_profiles"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Figure(_Strict):
    """A number, and why to believe it: a key of the profile's `sources`, or `estimate: true`."""

    value: float = Field(gt=0, allow_inf_nan=False)
    source: str | None = None
    estimate: bool = False
    note: str | None = None
    """What the number means, or what the estimate rests on."""

    @model_validator(mode="after")
    def _stands_on_something(self) -> Self:
        if (self.source is None) == (not self.estimate):
            raise ValueError("give a `source`, or else `estimate: true`")
        return self

    def __str__(self) -> str:
        return f"{'~' if self.estimate else ''}{self.value:g}"


class Count(Figure):
    """A whole number."""

    @field_validator("value")
    @classmethod
    def _whole(cls, value: float) -> float:
        if value != int(value):
            raise ValueError("must be a whole number")
        return value


class CoreClass(_Strict):
    """Cores of one kind."""

    name: str
    count: Count
    ghz: Figure | None = None


class CpuFacts(_Strict):
    """The CPU."""

    name: str
    arch: Literal["x86_64", "aarch64"]
    level: str | None = None
    """Architecture version, such as `armv8.2-a` or `x86-64-v3`."""
    cores: tuple[CoreClass, ...] = Field(min_length=1)
    """Fastest class first."""
    isa: tuple[str, ...]
    """Vector instruction sets that matter for matrix kernels, in lower case."""
    isa_source: str
    """Key of `sources`, or `estimate`."""


class MemoryFacts(_Strict):
    """Memory, which the CPU shares with everything else on the device."""

    ram_gib: Figure
    """What planning counts on; where a device is sold with several sizes, the smallest."""
    ram_options_gib: tuple[float, ...] = ()
    peak_gbps: Figure
    """Bus width times rate, in 10^9 bytes a second."""
    streaming_gbps: Figure | None = None
    """What reading weights has been measured to reach."""
    model_share: Figure
    """Part of the RAM that a model may take, the rest being the system's and the app's."""

    @field_validator("model_share")
    @classmethod
    def _is_a_share(cls, figure: Figure) -> Figure:
        if figure.value > 1:
            raise ValueError("must be a fraction of the RAM, at most 1")
        return figure


class Quantization(_Strict):
    """A quantization to use, and why."""

    name: str
    reason: str


class RuntimeChoice(_Strict):
    """An engine for this device, with its quantizations in order of preference."""

    name: str
    format: Literal["gguf", "onnx"]
    reason: str
    quantizations: tuple[Quantization, ...] = Field(min_length=1)
    session_options: dict[str, str] = {}
    """Entries for ONNX Runtime's session configuration; go into an export for this device."""


class DeviceProfile(_Strict):
    """One device."""

    name: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    title: str
    soc: str
    os: str
    cpu: CpuFacts
    memory: MemoryFacts
    gpu: str | None = None
    npu: str | None = None
    threads: Count
    """Threads to compute with."""
    context: Count
    """KV cache size in tokens when none is asked for."""
    runtimes: tuple[RuntimeChoice, ...] = Field(min_length=1)
    """In order of preference."""
    sources: dict[str, str]
    """Short key -> where to look it up."""

    @model_validator(mode="after")
    def _sources_are_named(self) -> Self:
        cited = {figure.source for _, figure in self.figures() if figure.source}
        if self.cpu.isa_source != "estimate":
            cited.add(self.cpu.isa_source)
        if unknown := cited - self.sources.keys():
            raise ValueError(f"source {sorted(unknown)[0]!r} is not listed under `sources`")
        if unused := self.sources.keys() - cited:
            raise ValueError(f"source {sorted(unused)[0]!r} is listed and never cited")
        return self

    @property
    def model_budget_gib(self) -> float:
        """Memory that a model may take, in GiB."""
        return self.memory.ram_gib.value * self.memory.model_share.value

    def figures(self) -> list[tuple[str, Figure]]:
        """Every number of the profile under its path, such as `memory.ram_gib`."""
        return list(_figures("", self))


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
    """A profile by name, or from a YAML file by its path.

    Raises:
        InputError: there is none of this name, or the file is missing or malformed; names the
            field.
    """
    if name.endswith((".yaml", ".yml")):
        return read_profile(Path(name))
    known = list_profiles()
    if name not in known:
        close = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)};"
        raise InputError(
            f"there is no device profile {name!r}; {hint} `edgeadapt devices list` shows all, "
            "and a path to a .yaml file works too"
        )
    text = (files(_PACKAGE) / f"{name}.yaml").read_text(encoding="utf-8")
    return parse_profile(text, f"{name}.yaml")


def read_profile(path: Path) -> DeviceProfile:
    """Read and check a profile file; raises as `load_profile` does."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text; expected a device profile in YAML") from error
    return parse_profile(text, str(path))


def parse_profile(text: str, origin: str) -> DeviceProfile:
    """Check the text of a profile; `origin` names it in errors.

    Raises:
        InputError: it is not YAML, or a field is missing, unknown or wrong; names the first.
    """
    return parse_yaml(text, origin, DeviceProfile)
