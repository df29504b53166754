"""A recipe: everything that `edgeadapt run` does, in one YAML file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from edgeadapt.allocation.budget import parse_max_size
from edgeadapt.errors import InputError
from edgeadapt.fidelity.gates import Gates
from edgeadapt.training.settings import TrainSettings
from edgeadapt.yaml_model import parse_yaml

BUILT_IN = ("demo", "instruct", "full")
"""Recipes that come with the package; those of `edgeadapt compare` are of another kind."""


def _plain_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ValueError("use letters, digits, dots, dashes and underscores: it names a folder")
    return name


RunName = Annotated[str, AfterValidator(_plain_name)]
"""What a folder in `runs/` can be called."""


class Section(BaseModel):
    """A part of a recipe: a field that it does not have is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSection(Section):
    """Where the examples are."""

    train: str | None = Field(None, description="file, folder, or python-docs; none: no training")
    held_out: str | None = Field(None, description="never trained on; python-docs brings its own")


class ExportSection(Section):
    """One artifact: for a device, or of a format and quantization, or of a format and a size."""

    device: str | None = Field(None, description="a profile's name, or a YAML file")
    format: str | None = Field(None, description="gguf or onnx")
    quantization: str | None = Field(None, description="as --quant")
    max_size: str | None = Field(
        None, description="as --max-size, such as 80MiB: types chosen by their effect on data.train"
    )

    @model_validator(mode="after")
    def _device_or_format(self) -> Self:
        how = [self.quantization, self.max_size]
        if self.device is None and (self.format is None or how.count(None) != 1):
            raise ValueError("give device, or format and one of quantization and max_size")
        if self.device is not None and (self.format or self.quantization or self.max_size):
            raise ValueError("give device, or format and quantization or max_size, not both")
        if self.max_size is not None:
            if self.format != "gguf":
                raise ValueError("max_size is for format gguf")
            try:
                parse_max_size(self.max_size)
            except InputError as error:
                raise ValueError(str(error)) from error
        return self


class TaskSection(Section):
    """The user's own measure of quality."""

    metric: str = Field(
        description="exact-match, f1, rouge-l, multiple-choice, or an edgeadapt.metrics plugin's"
    )
    data: str | None = Field(None, description="questions and answers; default: held-out data")
    examples: int = Field(32, ge=1, description="asked, evenly spaced over the data")
    max_tokens: int = Field(64, ge=1, description="longest answer")


class EvaluateSection(Section):
    """What every artifact is asked, on its own runtime."""

    held_out_examples: int = Field(128, ge=1, description="scored for perplexity")
    max_tokens: int = Field(512, ge=2, description="longer examples are cut")
    prompts: tuple[str, ...] = Field((), description="sample questions; default: from held-out")
    answer_tokens: int = Field(64, ge=1)
    task: TaskSection | None = None


class BenchSection(Section):
    """How latency and memory are measured."""

    prompt_tokens: int = Field(128, ge=1)
    decode_tokens: int = Field(64, ge=1)
    repetitions: int = Field(5, ge=1)
    threads: int | None = Field(None, ge=1, description="default: this machine's cores")
    reference: bool = Field(True, description="measure torch on the plain base beside them")


class Recipe(Section):
    """One run, from a base model to measured artifacts."""

    name: RunName = Field(description="the run lies in runs/<name>")
    base: str = Field(description="folder, GGUF file, hub id or `default`")
    revision: str | None = Field(None, description="of a hub id")
    data: DataSection = DataSection()
    train: TrainSettings | None = None
    adapter: str | None = Field(None, description="a ready adapter, in place of training")
    merge_onto: Literal["auto", "original", "quantized"] = Field(
        "auto", description="weights to merge into; auto: for QLoRA, what is better held out"
    )
    trained_on: str | None = Field(
        None, description="how training held the base, for adapters of other tools: nf4-double, ..."
    )
    export: tuple[ExportSection, ...] = Field(min_length=1)
    evaluate: EvaluateSection = EvaluateSection()
    gates: Gates = Gates()
    bench: BenchSection = BenchSection()

    @model_validator(mode="after")
    def _train_or_adapter(self) -> Self:
        if self.train is not None and self.adapter is not None:
            raise ValueError("give train or adapter, not both")
        if self.train is not None and self.data.train is None:
            raise ValueError("train needs data.train")
        if self.gates.min_task_metric is not None and self.evaluate.task is None:
            raise ValueError("gates.min_task_metric needs evaluate.task")
        if self.data.train is None and any(wish.max_size for wish in self.export):
            raise ValueError("export.max_size needs data.train: what each type costs is measured")
        if self.train is not None and self.train.method in ("prefix", "prompt"):
            raise ValueError(
                f"a run merges what it trains, and train.method {self.train.method} changes no "
                "weight; train it with `edgeadapt train`, and ship it with `edgeadapt export "
                "--adapter-mode separate --out p.safetensors`"
            )
        return self


def load_recipe(spec: str) -> Recipe:
    """Read a recipe file, or the built-in one of that name (`BUILT_IN`).

    Raises:
        InputError: there is none, or it does not say what a recipe must; names the field.
    """
    return parse_recipe(recipe_text(spec), spec)


def recipe_text(spec: str, built_in: Sequence[str] = BUILT_IN) -> str:
    """A recipe as it is written, to be copied.

    Args:
        spec: a file, or the name of a built-in one.
        built_in: those that there are of its kind.

    Raises:
        InputError: there is none.
    """
    path = Path(spec)
    if path.is_file():
        return path.read_text(encoding="utf-8", errors="replace")
    if spec in built_in:
        return files("edgeadapt.recipes").joinpath(f"{spec}.yaml").read_text(encoding="utf-8")
    raise InputError(
        f"there is no recipe {spec}; give a YAML file, or a built-in recipe: {', '.join(built_in)}"
    )


def parse_recipe(text: str, origin: str) -> Recipe:
    """Check the text of a recipe; `origin` names it in messages.

    Raises:
        InputError: it is not YAML, or a field is missing, unknown or wrong.
    """
    return parse_yaml(text, origin, Recipe)
