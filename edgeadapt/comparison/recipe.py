"""What `edgeadapt compare` is asked: methods, seeds, shares of the data, quantizations, devices."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from edgeadapt.adapters.sequential import FORMS
from edgeadapt.errors import InputError
from edgeadapt.recipe import (
    BenchSection,
    DataSection,
    EvaluateSection,
    ExportSection,
    Recipe,
    RunName,
    Section,
    TaskSection,
    recipe_text,
)
from edgeadapt.training.methods import METHODS
from edgeadapt.training.settings import MethodName, TrainSettings, train_settings
from edgeadapt.yaml_model import parse_yaml

Untrained = Literal["none", "few-shot", "rag"]
Ship = Literal["merged", "separate"]

BUILT_IN = ("compare-demo",)
"""Comparisons that come with the package."""

PROMPTING: tuple[Untrained, ...] = ("few-shot", "rag")
"""Methods that change the prompt and no weight."""
_ALWAYS_SEPARATE = ("prefix", "prompt")
"""What begins a KV cache, and changes no weight."""
_CAN_BE_SEPARATE = ("lora", "qlora", "rslora")


class MethodWish(Section):
    """One method, and how it differs from what is said for all."""

    method: Untrained | MethodName
    name: str | None = Field(None, description="in the tables; the method's by default")
    ship: tuple[Ship, ...] = Field(
        (), description="merged, or separate: beside the base's file; both, to compare the two"
    )
    train: dict[str, Any] = Field({}, description="training settings, over those for all")
    sweep: dict[str, tuple[Any, ...]] = Field(
        {}, description="training settings with the values to try; the best of all combinations "
        "on a slice of the training data is taken",
    )  # fmt: skip
    examples: int = Field(3, ge=1, le=64, description="few-shot: questions with their answers")
    passages: int = Field(3, ge=1, le=64, description="rag: most passages for a question")
    prompt_tokens: int = Field(384, ge=16, description="few-shot and rag: most tokens to add")

    @property
    def label(self) -> str:
        """What it is called."""
        return self.name or self.method

    @property
    def folder_name(self) -> str:
        """The same, as part of a file's name."""
        return re.sub(r"[^A-Za-z0-9._-]+", "-", self.label)

    @property
    def ships(self) -> tuple[Ship, ...]:
        """How it reaches a device, one contender for each."""
        if self.method in (*_ALWAYS_SEPARATE, *PROMPTING, "none"):
            return ("separate",)
        return self.ship or ("merged",)

    @property
    def contender_names(self) -> tuple[str, ...]:
        """What its contenders are called, quantization and share of the data aside."""
        ships = self.ships
        return (self.label,) if len(ships) == 1 else tuple(f"{self.label}, {s}" for s in ships)

    @property
    def starts_the_cache(self) -> bool:
        """Whether what is trained ships as the beginning of the KV cache."""
        return self.method in _ALWAYS_SEPARATE

    @property
    def trained(self) -> bool:
        """Whether something is trained."""
        return self.method in METHODS

    def combinations(self) -> list[dict[str, Any]]:
        """What the sweep tries; one empty combination without a sweep."""
        values = itertools.product(*self.sweep.values())
        return [dict(zip(self.sweep, chosen, strict=True)) for chosen in values]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.method.upper() in FORMS:
            raise ValueError(
                f"contenders run on llama.cpp, whose graphs have no place for {self.method}'s "
                "bottlenecks; compare the method adapter"
            )
        if self.sweep and not self.trained:
            raise ValueError(f"{self.method} trains nothing; leave sweep out")
        for name, tried in self.sweep.items():
            if name in ("method", "seed"):
                raise ValueError(f"sweep cannot vary {name}; compare has methods and seeds for it")
            if not tried or len({repr(value) for value in tried}) < len(tried):
                raise ValueError(f"sweep needs for {name} values that differ")
        if len(set(self.ship)) < len(self.ship):
            raise ValueError("ship has a value twice")
        if "separate" in self.ship and self.method not in (*_ALWAYS_SEPARATE, *_CAN_BE_SEPARATE):
            raise ValueError(
                f"{self.method} cannot ship separate; {', '.join(_CAN_BE_SEPARATE)} can"
            )
        if "merged" in self.ship and self.method in _ALWAYS_SEPARATE:
            raise ValueError(f"{self.method} changes no weight, so it cannot ship merged")
        if self.train and not self.trained:
            raise ValueError(f"{self.method} trains nothing; leave train out")
        return self


def _twice(values: Sequence[str]) -> str:
    return next(value for value in values if values.count(value) > 1)


def _as_wish(value: object) -> object:
    return {"method": value} if isinstance(value, str) else value


class ComparedData(Section):
    """Where the examples are."""

    train: str = Field(description="file, folder, or python-docs")
    held_out: str | None = Field(None, description="never trained on; python-docs brings its own")
    general: str = Field(
        "general", description="what must not be forgotten; `general` comes with edgeadapt"
    )
    documents: str | None = Field(
        None, description="what rag retrieves from; default: the training data"
    )


class ComparedEvaluation(Section):
    """What every contender is asked, on the runtime."""

    held_out_examples: int = Field(64, ge=2, description="scored, evenly spaced")
    general_examples: int = Field(48, ge=2)
    max_tokens: int = Field(512, ge=16, description="longer examples are left out")
    answer_tokens: int = Field(64, ge=1, description="of a usual answer, for time on devices")
    retention: bool = Field(True, description="compare with torch's float32 model of each method")
    task: TaskSection | None = None


class ClusterSection(Section):
    """What a trial declares where trials are tasks of a Ray cluster (`--ray`)."""

    cpus: int | None = Field(
        None, ge=1, description="default: the benchmark's threads, so that nothing disturbs it"
    )
    gpus: float = Field(0, ge=0)
    memory_gib: float | None = Field(None, gt=0, description="default: by the base's size")
    retries: int = Field(3, ge=0, description="how often a trial may lose its machine")


class ComparisonRecipe(Section):
    """Methods x seeds x shares of the data x quantizations x devices."""

    name: RunName = Field(description="the comparison lies in runs/<name>")
    base: str = Field(description="folder, GGUF file, hub id or `default`")
    revision: str | None = Field(None, description="of a hub id")
    data: ComparedData
    methods: tuple[Annotated[MethodWish, BeforeValidator(_as_wish)], ...] = Field(min_length=1)
    train: dict[str, Any] = Field({}, description="training settings of all methods")
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    fractions: tuple[float, ...] = Field((1.0,), min_length=1, description="of the training data")
    quantizations: tuple[str, ...] = Field(("Q4_K_M",), min_length=1, description="GGUF's names")
    devices: tuple[str, ...] = Field(min_length=1, description="profiles, or YAML files")
    evaluate: ComparedEvaluation = ComparedEvaluation()
    judged_by: Literal["likelihood", "task"] = Field(
        "likelihood", description="of held-out answers, or evaluate.task: what a choice goes by"
    )
    max_forgetting: float | None = Field(
        None, description="nats a token of general answers; what surely loses more is not chosen"
    )
    bench: BenchSection = BenchSection(repetitions=3)
    cluster: ClusterSection = ClusterSection()

    @field_validator("fractions")
    @classmethod
    def _shares(cls, fractions: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < share <= 1 for share in fractions):
            raise ValueError("each is a share of the training data, more than 0 and at most 1")
        return fractions

    @model_validator(mode="after")
    def _told_apart(self) -> Self:
        names = [wish.folder_name for wish in self.methods]
        if len(set(names)) < len(names):
            raise ValueError(
                "two methods have one name, as folders are called; give `name` to tell them apart"
            )
        called = [name for wish in self.methods for name in wish.contender_names]
        if len(set(called)) < len(called):
            raise ValueError(f"two contenders would be called {_twice(called)!r}; give other names")
        for axis in ("seeds", "fractions", "quantizations", "devices"):
            values = getattr(self, axis)
            if len(set(values)) < len(values):
                raise ValueError(f"{axis} has a value twice")
        if "none" not in {wish.method for wish in self.methods}:
            raise ValueError("methods needs `none`: every gain is told against the plain base")
        if any("system" in given for given in (self.train, *(m.train for m in self.methods))):
            raise ValueError(
                "all methods are asked the same prompts, so train.system cannot be set; put the "
                "system prompt into the data"
            )
        if self.judged_by == "task" and self.evaluate.task is None:
            raise ValueError("judged_by task needs evaluate.task")
        for wish in self.methods:
            if wish.trained:
                try:
                    for chosen in wish.combinations():
                        self.settings(wish, self.seeds[0], chosen)
                except InputError as error:
                    raise ValueError(f"{wish.label}: {error}") from error
        return self

    def settings(
        self, wish: MethodWish, seed: int, chosen: Mapping[str, Any] = MappingProxyType({})
    ) -> TrainSettings:
        """How a method is trained, with what was chosen in its sweep.

        Raises:
            InputError: a setting is unknown or out of range; names it.
        """
        return train_settings(
            self.train | wish.train | dict(chosen) | {"method": wish.method, "seed": seed}
        )

    def as_run(self, name: str, quantization: str) -> Recipe:
        """What a run would be asked, to make one of the artifacts."""
        return Recipe(
            name=name,
            base=self.base,
            revision=self.revision,
            data=DataSection(train=self.data.train, held_out=self.data.held_out),
            export=(ExportSection(format="gguf", quantization=quantization),),
            evaluate=EvaluateSection(task=self.evaluate.task),
        )

    def trials(self) -> Iterator[Trial]:
        """Every trial once; what no seed and no training data change is done once alone."""
        for wish in self.methods:
            always = wish.trained or wish.method == "few-shot"
            from_data = wish.method != "none" and not (wish.method == "rag" and self.data.documents)
            for fraction in self.fractions if from_data else (1.0,):
                varies = always or (from_data and fraction < 1)  # by which share is drawn
                for seed in self.seeds if varies else self.seeds[:1]:
                    yield Trial(wish, seed, fraction)


@dataclass(frozen=True)
class Trial:
    """One method with one seed on one share of the data; all its quantizations."""

    wish: MethodWish
    seed: int
    fraction: float

    @property
    def slug(self) -> str:
        """Names its result's file."""
        share = repr(self.fraction).removesuffix(".0")
        return f"{self.wish.folder_name}-seed{self.seed}-{share}"

    def __str__(self) -> str:
        told = self.wish.label
        if self.wish.trained:
            told += f", seed {self.seed}"
        return told if self.fraction == 1 else f"{told}, {100 * self.fraction:g}% of the data"


def load_comparison(spec: str) -> ComparisonRecipe:
    """Read a comparison's recipe file, or the built-in one of that name (`BUILT_IN`).

    Raises:
        InputError: there is none, or it does not say what it must; names the field.
    """
    return parse_yaml(recipe_text(spec, BUILT_IN), spec, ComparisonRecipe)
