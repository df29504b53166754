"""A sweep's combinations side by side on a Ray cluster, stopped by Ray Tune's ASHA scheduler."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from typing import Any

from edgeadapt.base_model import resolve_base
from edgeadapt.errors import DivergedError, EdgeAdaptError, RuntimeFailure
from edgeadapt.extras import need
from edgeadapt.leftovers import scratch
from edgeadapt.training.settings import TrainSettings
from edgeadapt.training.sweep import FACTOR, Watch
from edgeadapt.worker import reraise

_WHOLE = FACTOR * FACTOR
"""Tune counts ninths of a run: combinations may differ in their number of steps."""


def tune_on_ray(
    payload: dict[str, Any], *, resources: dict[str, float], retries: int
) -> list[dict[str, Any]]:
    """Try the combinations in a payload of `run_sweep`, as many at once as the cluster fits.

    Args:
        payload: as for `run_sweep`; its data travel to the machines.
        resources: `cpu`, `gpu` and `memory` that each declares.
        retries: how often one may lose its machine; it begins anew.

    Returns:
        As `run_sweep`.

    Raises:
        EdgeAdaptError: training failed, other than by diverging.
    """
    tune = need("ray.tune", "a sweep on a Ray cluster")
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # it takes a Ctrl-C for the end of the sweep
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    storage = Path(payload["folder"]).absolute() / "tune"
    texts = {name: Path(payload[name]).read_bytes() for name in ("data", "validation")}
    combinations = payload["combinations"]
    trainable = tune.with_parameters(_train_one, payload=payload, texts=texts)
    tuner = tune.Tuner(
        tune.with_resources(trainable, resources),
        param_space={"number": tune.grid_search(list(range(len(combinations))))},
        tune_config=tune.TuneConfig(
            metric="loss",
            mode="min",
            scheduler=tune.schedulers.ASHAScheduler(
                time_attr="ninths", max_t=_WHOLE, grace_period=1, reduction_factor=FACTOR
            ),
        ),
        run_config=tune.RunConfig(
            storage_path=str(storage),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=retries),
        ),
    )
    tried = {}
    for result in tuner.fit():
        if result.error is not None:
            raise RuntimeFailure(
                f"a combination of the sweep was lost on the cluster ({result.error}); type the "
                "same command again"
            ) from result.error
        metrics = result.metrics
        if metrics.get("failed"):
            reraise(metrics["failed"], "sweep")
        tried[metrics["number"]] = {
            "values": combinations[metrics["number"]]["values"],
            "losses": metrics["losses"],
            "ended": metrics["ended"],
        }
    shutil.rmtree(storage, ignore_errors=True)
    return [tried[number] for number in range(len(combinations))]


def _train_one(config: dict[str, Any], *, payload: dict[str, Any], texts: dict[str, bytes]) -> None:
    """One combination, on a node; each report is all that is known of it, the last one counts."""
    from ray import tune

    number, base = config["number"], Path(payload["base"])
    losses: list[list[float]] = []

    def say(loss: float, ninths: int, ended: str, **more: Any) -> None:
        told = {"loss": loss, "ninths": ninths, "ended": ended, "number": number}
        tune.report(told | {"losses": losses} | more)

    def report(step: int, last: int, loss: float) -> bool:
        if not math.isfinite(loss):
            raise DivergedError("the validation loss is not a number any more")
        losses.append([step, loss])
        # Unless it is the end, what Tune lets go on reports again.
        say(loss, round(_WHOLE * step / last), "done" if step == last else "stopped")
        return True

    try:
        with scratch("sweep") as folder:
            for name, content in texts.items():
                (folder / f"{name}.jsonl").write_bytes(content)
            from edgeadapt.training.train import train

            train(
                base if base.is_dir() else resolve_base(payload["base_spec"]),
                folder / "data.jsonl", None,
                TrainSettings(**payload["combinations"][number]["settings"]), folder / "out",
                base_spec=payload["base_spec"],
                watch=Watch(folder / "validation.jsonl", report),
            )  # fmt: skip
    except DivergedError:
        say(math.inf, _WHOLE, "diverged")
    except EdgeAdaptError as error:
        failed = {"type": type(error).__name__, "message": str(error)}
        say(math.inf, _WHOLE, "diverged", failed=failed)
