"""How to train: what a recipe's `train` section and the options of `edgeadapt train` say."""

from __future__ import annotations

from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgeadapt.errors import InputError

MethodName = Literal[
    "qlora",
    "lora",
    "dora",
    "rslora",
    "adapter",
    "houlsby",
    "pfeiffer",
    "ia3",
    "prefix",
    "prompt",
    "full",
]

OptimizerName = Literal["auto", "adamw", "adamw-8bit", "adamw-offloaded", "adafactor"]

BaseWeights = Literal["auto", "dequantized", "packed"]


class TrainSettings(BaseModel):
    """Settings of a training run; together with base and data they determine its result."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: MethodName = "qlora"
    r: int = Field(16, ge=1, le=1024, description="rank of LoRA's matrices")
    alpha: float = Field(32.0, gt=0, description="LoRA's updates are scaled by alpha / r")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the input of LoRA's matrices")
    target_modules: Literal["all-linear"] | tuple[str, ...] = Field(
        "all-linear", description="name endings of the layers to adapt; ia3 has its own default"
    )
    width: int | None = Field(
        None, ge=1, le=65536,
        description="of bottlenecks; by default adapter's fill the padding to a super-block, and "
        "houlsby's and pfeiffer's are a sixteenth of the hidden width",
    )  # fmt: skip
    base_weights: BaseWeights = Field(
        "auto",
        description="of a GGUF base: dequantized once, or packed in memory and dequantized in "
        "each pass; auto: packed where the others do not fit the free memory",
    )
    virtual_tokens: int = Field(16, ge=1, le=1024, description="length of a prefix or prompt")
    learning_rate: float | None = Field(None, gt=0, description="the method's own by default")
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps to warm up over")
    optimizer: OptimizerName = Field(
        "auto", description="auto: adamw, unless its state does not fit the free memory"
    )
    batch_size: int = Field(4, ge=1)
    gradient_accumulation: int = Field(1, ge=1, description="batches for each step")
    max_steps: int | None = Field(None, ge=1, description="optimizer steps; wins over epochs")
    epochs: float = Field(1.0, gt=0, description="passes over the data")
    max_tokens: int = Field(512, ge=2, description="longer examples are cut")
    packing: bool = Field(
        False, description="fill rows of max_tokens with examples that do not see each other"
    )
    held_out_examples: int = Field(128, ge=1, description="held-out examples to score")
    system: str | None = Field(
        None, min_length=1,
        description="system prompt of conversations that have none, trained on and held out",
    )  # fmt: skip
    gradient_checkpointing: bool = Field(False, description="half the memory, a third more time")
    seed: int = Field(0, ge=0, lt=2**32)
    save_every_s: float = Field(30.0, ge=0, description="seconds between checkpoints")

    @model_validator(mode="after")
    def _packs(self) -> Self:
        if self.packing and self.method in ("prefix", "prompt"):
            raise ValueError(
                f"packing cannot be used with {self.method}, which comes before one example only"
            )
        return self


def train_settings(values: dict[str, Any]) -> TrainSettings:
    """Check settings given by a person.

    Raises:
        InputError: a name is unknown or a value is out of range; names it.
    """
    try:
        return TrainSettings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:
            raise InputError(first["msg"].removeprefix("Value error, ")) from error
        field = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"training setting {field!r}: {first['msg']}, found {first['input']!r}"
        ) from error


def parse_assignments(assignments: tuple[str, ...], *, option: str = "--set") -> dict[str, Any]:
    """Settings written as `name=value`, the values in YAML; `option` names them in messages.

    Raises:
        InputError: one has no `=`, or its value is not YAML.
    """
    values = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        try:
            values[name] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"{option} {assignment}: the value is not YAML") from error
        if not equals:
            raise InputError(f"{option} {assignment}: expected NAME=VALUE")
    return values
