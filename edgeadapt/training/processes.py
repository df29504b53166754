"""Training in several processes of this machine, each a child that is watched."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from edgeadapt.artifact import MANIFEST
from edgeadapt.console import progress
from edgeadapt.files import read_json
from edgeadapt.jobs import available_threads
from edgeadapt.training.settings import TrainSettings
from edgeadapt.training.world import asking_to_shard, check_sharing
from edgeadapt.worker import Progress, run_job


def train_in_processes(
    processes: int,
    base: Path,
    data: Path,
    held_out: Path | None,
    settings: TrainSettings,
    out: Path,
    *,
    base_spec: str,
    work: Path | None = None,
    teacher: tuple[str, Path | None] | None = None,
    shard: bool = False,
) -> dict[str, Any]:
    """As `train`, in processes that share every batch (DDP), or the model as well (FSDP2).

    Args:
        processes: how many; one for each GPU, where there are any.
        base: Hugging Face folder of the base model.
        data: the training data.
        held_out: data to score before and after.
        settings: everything that shapes the result; a batch is that of all processes together.
        out: folder to make.
        base_spec: what the user calls the base.
        work: folder for checkpoints.
        teacher: model and adapter whose predictions are learned.
        shard: whether each holds a share of the model, of its gradients and of the optimizer's
            state.

    Returns:
        The record in `out`.

    Raises:
        EdgeAdaptError: as `train`; from the process that failed first.
    """
    check_sharing(processes, settings, sharded=shard)
    payload = {
        "base": str(base),
        "data": str(data),
        "held_out": held_out and str(held_out),
        "settings": settings.model_dump(mode="json"),
        "out": str(out),
        "base_spec": base_spec,
        "work": work and str(work),
        "teacher": teacher and [teacher[0], teacher[1] and str(teacher[1])],
        "world": {
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
            "OMP_NUM_THREADS": str(max(1, available_threads() // processes)),
        }
        | (asking_to_shard() if shard else {}),
    }
    with progress(f"training ({settings.method})", settings.max_steps or 0, "steps") as advance:
        _all_of(processes, payload, advance)
    record: dict[str, Any] = read_json(out / MANIFEST)
    return {name: value for name, value in record.items() if name not in ("kind", "schema_version")}


def _all_of(processes: int, payload: dict[str, Any], advance: Progress) -> None:
    started: list[int] = []

    def one(rank: int) -> None:
        run_job(
            "train-rank", payload | {"rank": rank}, on_start=started.append,
            on_progress=advance if rank == 0 else None,
        )  # fmt: skip

    with ThreadPoolExecutor(processes) as pool:
        ranks = [pool.submit(one, rank) for rank in range(processes)]
        try:
            done, left = wait(ranks, return_when=FIRST_EXCEPTION)
        except BaseException:  # asked to end: so do they
            _kill(started)
            raise
        if left:  # they wait for the one that failed
            _kill(started)
    for rank in done:
        rank.result()


def _kill(processes: list[int]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def run_rank(payload: dict[str, Any], advance: Progress) -> dict[str, Any]:
    """The `train-rank` job, in each child."""
    rank = str(payload["rank"])
    os.environ.update({"OMP_NUM_THREADS": payload["world"]["OMP_NUM_THREADS"]} | os.environ)
    own = {"RANK": rank, "LOCAL_RANK": rank}
    os.environ.update({k: v for k, v in payload["world"].items() if k != "OMP_NUM_THREADS"} | own)
    from edgeadapt.export import open_model
    from edgeadapt.training.train import train

    teacher, held_out, work = payload["teacher"], payload["held_out"], payload["work"]
    train(
        Path(payload["base"]), Path(payload["data"]), held_out and Path(held_out),
        TrainSettings(**payload["settings"]), Path(payload["out"]),
        base_spec=payload["base_spec"], work=work and Path(work),
        teacher=teacher and open_model(teacher[0], teacher[1] and Path(teacher[1])),
        on_step=lambda: advance(1.0),
    )  # fmt: skip
    return {}
