"""One trial on a machine of a Ray cluster."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeadapt import __version__
from edgeadapt.comparison.ground import Ground, find_ground
from edgeadapt.comparison.recipe import Trial
from edgeadapt.comparison.trial import attempt
from edgeadapt.console import set_verbosity
from edgeadapt.data.load import data_hash
from edgeadapt.errors import EdgeAdaptError, InputError
from edgeadapt.files import cache_dir
from edgeadapt.pipeline.workspace import locked

TOKEN = ".cluster"
"""File in the driver's folder by which a machine knows that it has the same disk."""

PATIENCE_S = 60.0
"""How long a machine that fits a trial is waited for, and one that was given up may work on."""


@dataclass(frozen=True)
class Driver:
    """Who asks: what a node needs to know to do the same."""

    cwd: Path
    token: str
    threads: int
    identity: dict[str, str | None]
    verbosity: int
    version: str = __version__


def do_trial(ground: Ground, trial: Trial, driver: Driver) -> dict[str, Any]:
    """The task, on a node: an answer as JSON, an error included, which Ray is not to retry."""
    answer: dict[str, Any] = {"node": platform.node()}
    try:
        set_verbosity(driver.verbosity)
        if driver.version != __version__:
            raise InputError(
                f"{answer['node']} has edgeadapt {__version__} and this machine {driver.version}; "
                "install the same on all"
            )
        ground = _ground_here(ground, trial, driver)
        bench = ground.recipe.bench.model_copy(update={"threads": driver.threads})
        ground = replace(ground, recipe=ground.recipe.model_copy(update={"bench": bench}))
        with alone(ground.root / ".trials" / trial.slug):
            return answer | {"result": attempt(ground, trial)}
    except Exception as error:  # a process boundary: whatever it was, the driver must hear it
        return answer | {"error": {"type": type(error).__name__, "message": str(error)}}


def _ground_here(ground: Ground, trial: Trial, driver: Driver) -> Ground:
    """The driver's ground where this machine sees the same files; else found anew, and compared."""
    try:
        os.chdir(driver.cwd)  # what the recipe names may be relative to it
        if (ground.root / TOKEN).read_text() == driver.token:
            ground.inputs.watched.check()
            return ground
    except (OSError, EdgeAdaptError):
        pass
    here = find_ground(ground.recipe, cache_dir() / "compare" / ground.recipe.name / trial.slug)
    found = identity(here)
    differing = [name for name, value in driver.identity.items() if found[name] != value]
    if differing:
        raise InputError(
            f"{platform.node()} has another {' and '.join(differing)} under the name in the "
            "recipe; copy the same there, or put them on a disk that all machines share"
        )
    return here


def identity(ground: Ground) -> dict[str, str | None]:
    """Hashes of what a comparison reads, by what a person calls it."""
    return {
        "base": ground.inputs.base_sha256,
        "training data": data_hash(ground.train_data),
        "held-out data": data_hash(ground.held_out),
        "general data": data_hash(ground.general),
        "documents": None if ground.documents is None else data_hash(ground.documents),
        "task data": None if ground.task is None else data_hash(ground.task.data),
    }


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a trial; a node that Ray gave up, but that lives, may be at it for a while yet."""
    with contextlib.ExitStack() as held:
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                held.enter_context(locked(folder))
                break
            except InputError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.5)
        yield
