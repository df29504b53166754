"""What a device is made of, as its profile tells it: numbers that say why to believe them."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Strict(BaseModel):
    """A part of a profile: what it does not know is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Figure(Strict):
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


class CoreClass(Strict):
    """Cores of one kind."""

    name: str
    count: Count
    ghz: Figure | None = None
    little: bool = False
    """Slow cores that the others would wait for: not counted on for a model."""


class CpuFacts(Strict):
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
    governor: str | None = None
    """How Linux sets the clock, where the profile was made on the machine."""


class MemoryFacts(Strict):
    """Memory, which the CPU shares with everything else on the device."""

    ram_gib: Figure
    """What planning counts on; where a device is sold with several sizes, the smallest."""
    ram_options_gib: tuple[float, ...] = ()
    peak_gbps: Figure
    """Bus width times rate, in 10^9 bytes a second."""
    streaming_gbps: Figure | None = None
    """What reading weights has been measured to reach."""
    read_gbps: Figure | None = None
    """What all cores together read, measured by `edgeadapt devices detect`."""
    model_share: Figure
    """Part of the RAM that a model may take, the rest being the system's and the app's."""

    @field_validator("model_share")
    @classmethod
    def _is_a_share(cls, figure: Figure) -> Figure:
        if figure.value > 1:
            raise ValueError("must be a fraction of the RAM, at most 1")
        return figure


class GpuFacts(Strict):
    """A GPU that a runtime could use."""

    name: str
    apis: tuple[Literal["cuda", "metal", "vulkan", "opencl", "directml"], ...]
    """What llama.cpp or ONNX Runtime reach it through; empty: nothing that is worth it."""
    unified_memory: bool
    """It shares the CPU's memory, so a model counts once and against the same budget."""
    memory_gib: Figure | None = None
    """Memory of its own, where that is separate."""
    layers: Literal["all", "none"] | int = "none"
    """Layers of a model to put on it: `--gpu-layers`."""
    note: str | None = None

    @model_validator(mode="after")
    def _memory_fits_its_kind(self) -> Self:
        if self.unified_memory and self.memory_gib is not None:
            raise ValueError("unified memory is the CPU's: leave out `memory_gib`")
        if not self.unified_memory and self.memory_gib is None:
            raise ValueError("separate memory needs `memory_gib`")
        if isinstance(self.layers, int) and self.layers < 1:
            raise ValueError("layers: give `all`, `none`, or 1 and more")
        return self


class NpuFacts(Strict):
    """A neural processor; no runtime of edgeadapt uses one yet."""

    name: str
    tops: Figure | None = None
    """Peak of 8-bit operations, 10^12 a second, as its vendor counts them."""
    note: str | None = None
