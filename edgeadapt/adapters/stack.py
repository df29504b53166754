"""Several adapters on one base: one after the other, or as a weighted sum of LoRAs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from edgeadapt.adapters.adapted import AdaptedSource
from edgeadapt.adapters.merged import merged_source
from edgeadapt.adapters.separate import not_plain_lora
from edgeadapt.adapters.spec import read_spec
from edgeadapt.errors import AdapterError, InputError, UnsupportedError
from edgeadapt.weights import WeightSource


@dataclass(frozen=True)
class AdapterChoice:
    """An adapter folder, and its weight in a weighted sum."""

    path: Path
    weight: float | None = None


AdapterGiven: TypeAlias = str | Path | AdapterChoice


def parse_adapters(given: Sequence[AdapterGiven]) -> tuple[AdapterChoice, ...]:
    """Adapters as the command line names them: `PATH`, or `PATH=WEIGHT`; or chosen already.

    Raises:
        InputError: a weight is no number, or only some adapters have one, or one comes twice.
    """
    choices = tuple(_parse(item) for item in given)
    if len({choice.weight is None for choice in choices}) > 1:
        raise InputError(
            "some adapters have a weight and some have none; give all of them one "
            "(--adapter A=0.7 --adapter B=0.3), or none to merge them one after the other"
        )
    if len({choice.path.resolve() for choice in choices}) < len(choices):
        raise InputError("the same adapter was given twice; name each once")
    return choices


def _parse(given: AdapterGiven) -> AdapterChoice:
    if isinstance(given, AdapterChoice):
        return given
    path = Path(given)
    if isinstance(given, Path) or path.exists() or "=" not in given:
        return AdapterChoice(path)
    name, _, number = given.rpartition("=")
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not name or not math.isfinite(weight):
        raise InputError(
            f"{given!r} is no adapter; expected a folder, or FOLDER=WEIGHT as in a=0.7"
        )
    return AdapterChoice(Path(name), weight)


def stacked_source(base: WeightSource, adapters: Sequence[AdapterChoice]) -> WeightSource:
    """The base with the adapters merged in, in the order given.

    Without weights this is what PEFT computes with all of them active, and what its
    `merge_and_unload` makes. With weights it is PEFT's `add_weighted_adapter` of the combination
    type "cat", merged: W + sum of weight * scale * B @ A, exactly.

    Raises:
        AdapterError: an adapter does not fit the base, or undoes what one before it changed.
        UnsupportedError: a method has no merged form, or no weighted one.
    """
    source, changed = base, dict[str, str]()
    for choice in adapters:
        if choice.weight is not None:
            spec = read_spec(choice.path)
            if reasons := not_plain_lora(spec, base):
                raise UnsupportedError(
                    f"the adapter {choice.path} cannot be weighted: {reasons[0]}; give adapters "
                    "without weights to merge them one after the other"
                )
        source = merged = merged_source(
            source,
            choice.path,
            original=base,
            weight=1.0 if choice.weight is None else choice.weight,
        )
        _check_order(merged, changed)
        changed |= dict.fromkeys(merged.changed, choice.path.name)
    return source


def _check_order(source: AdaptedSource, changed: dict[str, str]) -> None:
    """A saved copy of a whole tensor would silently undo what earlier adapters did to it."""
    for name in sorted(source.replaced & changed.keys()):
        raise AdapterError(
            f"the adapter {source.spec.path.name} holds its own copy of {name!r}, which "
            f"{changed[name]} changes too: only one of them can have its way; give the one with "
            "the copy first, or leave one out"
        )
