"""A comparison's trials on a Ray cluster: each is a task that is done again if its node is lost.

What the machines need: the same edgeadapt with what the methods need, and the same Python. With a
disk that all share, everything lies in the comparison's folder as if one machine had done it, and
a trial that lost its node goes on from its last checkpoint. Elsewhere a machine finds base and data
by what the recipe calls them, which must hash to the same; it makes the base's files again, keeps
its stages in a folder of its own for each trial (`compare/` in its cache), and only the figures
come back: artifacts stay where they were made.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeadapt import __version__
from edgeadapt.comparison.ground import Ground, find_ground
from edgeadapt.comparison.recipe import Trial
from edgeadapt.comparison.run import Execute
from edgeadapt.comparison.sweep import swept
from edgeadapt.comparison.trial import attempt, data_of
from edgeadapt.comparison.tune import tune_on_ray
from edgeadapt.console import log, set_verbosity
from edgeadapt.data.load import data_hash
from edgeadapt.errors import EdgeAdaptError, HostFailure, InputError, RuntimeFailure
from edgeadapt.extras import need
from edgeadapt.files import cache_dir
from edgeadapt.jobs import available_threads
from edgeadapt.pipeline.workspace import locked
from edgeadapt.safetensors_io import SafetensorsSource
from edgeadapt.training.methods import METHODS
from edgeadapt.weights import parameter_count
from edgeadapt.worker import reraise

_TOKEN = ".cluster"
_PATIENCE_S = 60.0
"""How long a machine that fits a trial is waited for, and one that was given up may work on."""
_LIBRARIES = 1 << 30
_RESULTS = 128 << 20  # a trial's result has kilobytes; Ray would take a third of the memory


@dataclass(frozen=True)
class _Driver:
    """Who asks: what a node needs to know to do the same."""

    cwd: Path
    token: str
    threads: int
    identity: dict[str, str | None]
    verbosity: int
    version: str = __version__


@contextlib.contextmanager
def ray_cluster(address: str) -> Iterator[Execute]:
    """A way to do trials, while the connection lasts.

    Args:
        address: `auto` (the cluster that this machine belongs to), `HOST:PORT` of its head, or
            `local`: one on this machine that ends with the comparison.

    Raises:
        InputError: the address is of Ray's client protocol, `ray://`.
        MissingExtraError: Ray is not installed.
        HostFailure: there is no cluster, or it does not answer.
    """
    if address.startswith("ray://"):
        raise InputError(
            f"--ray {address}: edgeadapt does not speak Ray's client protocol; run it on a machine "
            "of the cluster with --ray auto, or give the head's HOST:PORT"
        )
    ray = need("ray", "comparing on a Ray cluster")
    with _connected(ray, address):
        yield lambda ground, trials: _done_on(ray, ground, trials)


@contextlib.contextmanager
def _connected(ray: Any, address: str) -> Iterator[None]:
    options: dict[str, Any] = {}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it reports to its makers
        options = {
            "num_cpus": available_threads(),
            "object_store_memory": _RESULTS,
            "include_dashboard": False,
        }
    debug = log.isEnabledFor(logging.DEBUG)
    try:
        _knock(address)
        with _own_sigterm():
            ray.init(
                address=address, log_to_driver=debug,
                logging_level=logging.INFO if debug else logging.ERROR, **options,
            )  # fmt: skip
    except (OSError, RuntimeError, ValueError, AssertionError) as error:
        raise HostFailure(
            f"no Ray cluster answers at {address!r} ({str(error).splitlines()[0]}); start one with "
            "`ray start --head`, or say --ray local; Ray 2.59 and later ask for the cluster's "
            "token: see `ray get-auth-token`"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """See that somebody is there: Ray itself tries for minutes.

    Raises:
        OSError: nobody is.
    """
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Ray puts a handler of its own in the place of ours."""
    ours = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, ours)


def _done_on(
    ray: Any, ground: Ground, trials: Sequence[Trial]
) -> Iterator[tuple[str, dict[str, Any]]]:
    wanted = ground.recipe.cluster
    threads = ground.recipe.bench.threads or available_threads()
    cpus, token = wanted.cpus or threads, ground.root / _TOKEN
    verbosity = 1 if log.isEnabledFor(logging.DEBUG) else -1
    driver = _Driver(Path.cwd(), uuid.uuid4().hex, threads, _identity(ground), verbosity)
    token.write_text(driver.token)
    task = ray.remote(_do)
    shared = ray.put(ground)
    needs = {trial.slug: (cpus, declared_memory(ground, trial)) for trial in trials}
    pending: dict[Any, Trial] = {}
    sweeps: dict[str, dict[str, Any]] = {}
    try:
        for trial in sorted(trials, key=lambda one: bool(one.wish.sweep)):
            memory = needs[trial.slug][1]
            if trial.wish.sweep:
                trial, sweeps[trial.slug] = _settled(ray, ground, trial, cpus, memory)
            options = {"num_cpus": cpus, "num_gpus": wanted.gpus, "memory": memory}
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
            elif time.monotonic() - fitted > _PATIENCE_S:
                raise RuntimeFailure(_nothing_fits(ray, *waiting[0]))
    finally:
        for ref in pending:
            with contextlib.suppress(Exception):  # the cluster may be what failed
                ray.cancel(ref, force=True)
        token.unlink(missing_ok=True)


def _settled(
    ray: Any, ground: Ground, trial: Trial, cpus: int, memory: int
) -> tuple[Trial, dict[str, Any]]:
    """The trial with the settings that its sweep chose, and the sweep's record.

    All of the cluster works at one sweep; trials whose settings are known run beside it.
    """

    def search(_: Trial, payload: dict[str, Any]) -> list[dict[str, Any]]:
        if not _some_fits(ray, [(cpus, memory)]):
            raise RuntimeFailure(_nothing_fits(ray, cpus, memory))
        wanted = ground.recipe.cluster
        resources = {"cpu": float(cpus), "gpu": wanted.gpus, "memory": float(memory)}
        return tune_on_ray(payload, resources=resources, retries=wanted.retries)

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
        raise RuntimeFailure(
            f"{trial} was lost on the cluster ({str(error).strip().splitlines()[-1]}); see that "
            "each node has this edgeadapt and enough memory, then type the same command again"
        ) from error
    if "error" in answer:
        reraise(answer["error"], f"trial {trial} on {answer['node']}")
    return answer


def _alive(ray: Any) -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _some_fits(ray: Any, needs: Sequence[tuple[int, int]]) -> bool:
    return any(
        node.get("CPU", 0) >= cpus and node.get("memory", 0) >= memory
        for node in _alive(ray)
        for cpus, memory in needs
    )


def _nothing_fits(ray: Any, cpus: int, memory: int) -> str:
    nodes = _alive(ray)
    offered = ", ".join(
        f"{node.get('CPU', 0):g} CPUs with {node.get('memory', 0) / 2**30:.1f} GiB"
        for node in nodes
    )
    return (
        f"no machine of the cluster fits a trial, which needs {cpus} CPUs and "
        f"{memory / 2**30:.1f} GiB; it has {offered or 'none'}: set cluster.cpus and "
        "cluster.memory_gib in the recipe, or add a machine"
    )


def _do(ground: Ground, trial: Trial, driver: _Driver) -> dict[str, Any]:
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
        with _alone(ground.root / ".trials" / trial.slug):
            return answer | {"result": attempt(ground, trial)}
    except Exception as error:  # a process boundary: whatever it was, the driver must hear it
        return answer | {"error": {"type": type(error).__name__, "message": str(error)}}


def _ground_here(ground: Ground, trial: Trial, driver: _Driver) -> Ground:
    """The driver's ground where this machine sees the same files; else found anew, and compared."""
    try:
        os.chdir(driver.cwd)  # what the recipe names may be relative to it
        if (ground.root / _TOKEN).read_text() == driver.token:
            ground.inputs.watched.check()
            return ground
    except (OSError, EdgeAdaptError):
        pass
    here = find_ground(ground.recipe, cache_dir() / "compare" / ground.recipe.name / trial.slug)
    found = _identity(here)
    differing = [name for name, value in driver.identity.items() if found[name] != value]
    if differing:
        raise InputError(
            f"{platform.node()} has another {' and '.join(differing)} under the name in the "
            "recipe; copy the same there, or put them on a disk that all machines share"
        )
    return here


def _identity(ground: Ground) -> dict[str, str | None]:
    return {
        "base": ground.inputs.base_sha256,
        "training data": data_hash(ground.train_data),
        "held-out data": data_hash(ground.held_out),
        "general data": data_hash(ground.general),
        "documents": None if ground.documents is None else data_hash(ground.documents),
        "task data": None if ground.task is None else data_hash(ground.task.data),
    }


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a trial; a node that Ray gave up, but that lives, may be at it for a while yet."""
    with contextlib.ExitStack() as held:
        until = time.monotonic() + _PATIENCE_S
        while True:
            try:
                held.enter_context(locked(folder))
                break
            except InputError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.5)
        yield
