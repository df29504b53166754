"""Hand a comparison's trials to the machines of a Ray cluster, and take their results."""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeadapt.comparison.cluster.node import PATIENCE_S, TOKEN, Driver, do_trial, identity
from edgeadapt.comparison.ground import Ground
from edgeadapt.comparison.recipe import Trial
from edgeadapt.comparison.sweep import Tried, swept
from edgeadapt.comparison.trial import data_of, failed
from edgeadapt.comparison.tune import tune_on_ray
from edgeadapt.console import log
from edgeadapt.errors import DivergedError, RuntimeFailure, UnsupportedError
from edgeadapt.jobs import available_threads
from edgeadapt.safetensors_io import SafetensorsSource
from edgeadapt.training.methods import METHODS
from edgeadapt.weights import parameter_count
from edgeadapt.worker import reraise

_LIBRARIES = 1 << 30

Needs = tuple[int, float, int]
"""CPUs, GPUs and bytes of memory that a trial declares."""


def do_on(
    ray: Any, ground: Ground, trials: Sequence[Trial]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Do trials as tasks of a cluster.

    Args:
        ray: the module, connected.
        ground: what the trials have in common.
        trials: those to do.

    Returns:
        The slug and the result of each, as they come.

    Raises:
        RuntimeFailure: no machine fits a trial, or one was lost more often than the recipe allows.
        EdgeAdaptError: what a trial raised that is not its method's fault.
    """
    wanted = ground.recipe.cluster
    threads = ground.recipe.bench.threads or available_threads()
    cpus, token = wanted.cpus or threads, ground.root / TOKEN
    verbosity = 1 if log.isEnabledFor(logging.DEBUG) else -1
    driver = Driver(Path.cwd(), uuid.uuid4().hex, threads, identity(ground), verbosity)
    token.write_text(driver.token)
    task = ray.remote(do_trial)
    shared = ray.put(ground)
    needs = {trial.slug: (cpus, wanted.gpus, declared_memory(ground, trial)) for trial in trials}
    pending: dict[Any, Trial] = {}
    sweeps: dict[str, dict[str, Any]] = {}
    try:
        for trial in sorted(trials, key=lambda one: bool(one.wish.sweep)):
            needed = needs[trial.slug]
            if trial.wish.sweep:
                try:
                    trial, sweeps[trial.slug] = _settled(ray, ground, trial, needed)
                except (DivergedError, UnsupportedError) as error:
                    yield trial.slug, failed(trial, error)
                    continue
            options = {"num_cpus": cpus, "num_gpus": wanted.gpus, "memory": needed[2]}
            ref = task.options(name=str(trial), max_retries=wanted.retries, **options).remote(
                shared, trial, driver
            )
            pending[ref] = trial
        fitted = time.monotonic()
        while pending:
            ready, _ = ray.wait(list(pending), num_returns=1, timeout=5)
            for ref in ready:
                trial = pending.pop(ref)
                answer = _answer(ray, ref, trial)
                if trial.slug in sweeps and "failed" not in answer["result"]:
                    answer["result"]["training"]["sweep"] = sweeps[trial.slug]
                done = len(trials) - len(pending)
                log.info("=== %s: done on %s (%d of %d)", trial, answer["node"], done, len(trials))
                yield trial.slug, answer["result"]
            waiting = [needs[trial.slug] for trial in pending.values()]
            if ready or _some_fits(ray, waiting):
                fitted = time.monotonic()
            elif time.monotonic() - fitted > PATIENCE_S:
                raise RuntimeFailure(_nothing_fits(ray, waiting[0]))
    finally:
        for ref in pending:
            with contextlib.suppress(Exception):  # the cluster may be what failed
                ray.cancel(ref, force=True)
        token.unlink(missing_ok=True)


def _settled(ray: Any, ground: Ground, trial: Trial, needs: Needs) -> tuple[Trial, dict[str, Any]]:
    """The trial with the settings that its sweep chose, and the sweep's record.

    All of the cluster works at one sweep; trials whose settings are known run beside it.
    """

    def search(_: Trial, payload: dict[str, Any]) -> Tried:
        if not _some_fits(ray, [needs]):
            raise RuntimeFailure(_nothing_fits(ray, needs))
        cpus, gpus, memory = needs
        resources = {"cpu": float(cpus), "gpu": gpus, "memory": float(memory)}
        retries = ground.recipe.cluster.retries
        return Tried(tune_on_ray(payload, resources=resources, retries=retries))

    log.info("=== sweep of %s", trial)
    space = ground.workspace()
    chosen, record = swept(space, ground, trial, data_of(space, ground, trial), search)
    assert record is not None
    wish = trial.wish.model_copy(update={"train": trial.wish.train | chosen, "sweep": {}})
    return replace(trial, wish=wish), record


def declared_memory(ground: Ground, trial: Trial) -> int:
    """Bytes that Ray keeps free for a trial: the recipe's, or by the base's size.

    Training all weights in float32 holds them, their gradients and AdamW's two moments; all else
    at most the base beside a merged model.
    """
    wanted = ground.recipe.cluster.memory_gib
    if wanted is not None:
        return round(wanted * 2**30)
    method = METHODS.get(trial.wish.method)
    copies = 2 if method is None or method.frozen_base else 4
    return copies * 4 * parameter_count(SafetensorsSource(ground.base)) + _LIBRARIES


def _answer(ray: Any, ref: Any, trial: Trial) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = ray.get(ref)
    except ray.exceptions.RayError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise RuntimeFailure(
            f"{trial} was lost on the cluster ({reason}); see that "
            "each node has this edgeadapt and enough memory, then type the same command again"
        ) from error
    if "error" in answer:
        reraise(answer["error"], f"trial {trial} on {answer['node']}")
    return answer


def _alive(ray: Any) -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _some_fits(ray: Any, needs: Sequence[Needs]) -> bool:
    kinds = ("CPU", "GPU", "memory")
    return any(
        all(node.get(kind, 0) >= least for kind, least in zip(kinds, needed, strict=True))
        for node in _alive(ray)
        for needed in needs
    )


def _nothing_fits(ray: Any, needs: Needs) -> str:
    def told(cpus: float, gpus: float, memory: float) -> str:
        parts = [f"{cpus:g} CPUs", f"{gpus:g} GPUs" if gpus else "", f"{memory / 2**30:.1f} GiB"]
        return " with ".join(part for part in parts if part)

    offered = ", ".join(
        told(node.get("CPU", 0), node.get("GPU", 0), node.get("memory", 0)) for node in _alive(ray)
    )
    return (
        f"no machine of the cluster fits a trial, which needs {told(*needs)}; it has "
        f"{offered or 'none'}: set cluster.cpus, cluster.gpus and cluster.memory_gib in the "
        "recipe, or add a machine"
    )
