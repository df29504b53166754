"""The processes that train one model together, each on its share of every batch.

`edgeadapt train --processes` starts them, or `accelerate launch`, on one machine or several; both
say who is who in the environment, as torch.distributed has it (RANK, WORLD_SIZE, LOCAL_RANK).
"""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass
from typing import Any

from edgeadapt.errors import InputError, UnsupportedError
from edgeadapt.extras import need
from edgeadapt.training.methods import METHODS
from edgeadapt.training.settings import TrainSettings

TIMEOUT = datetime.timedelta(days=1)
"""One writes, or makes a folder ready, while the others wait."""

_SHARDED = "ACCELERATE_USE_FSDP"

_NOT_DONE = {
    "FSDP_OFFLOAD_PARAMS": "keep shards in the machine's memory; leave out --fsdp_offload_params",
    "FSDP_ACTIVATION_CHECKPOINTING": (
        "recompute activations in its own way; leave out --fsdp_activation_checkpointing and give "
        "edgeadapt train --set gradient_checkpointing=true"
    ),
}
"""What accelerate can be asked to do beside sharding, and edgeadapt has not been tried with."""


@dataclass(frozen=True)
class World:
    """This process among those that train together."""

    size: int = 1
    rank: int = 0
    local_rank: int = 0
    local_size: int = 1
    """Processes on this machine."""
    sharded: bool = False
    """Whether each holds a share of the model (FSDP2), and not all of it (DDP)."""

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            need("torch.distributed", "training in processes").barrier()

    def tell(self, value: Any) -> Any:
        """The leading process's value, in all."""
        if self.size == 1:
            return value
        told = [value]
        need("torch.distributed", "training in processes").broadcast_object_list(told, src=0)
        return told[0]

    def total(self, value: float) -> float:
        """The sum of every process's value, in all."""
        if self.size == 1:
            return value
        values = [0.0] * self.size
        need("torch.distributed", "training in processes").all_gather_object(values, value)
        return sum(values)


ALONE = World()


def asking_to_shard() -> dict[str, str]:
    """What in the environment has `this_world` shard the model, as `accelerate launch` puts it."""
    return {_SHARDED: "true", "FSDP_VERSION": "2"}


def this_world() -> World:
    """Join the others, if there are any: NCCL on GPUs, gloo on CPUs.

    Raises:
        UnsupportedError: the launcher asks for what is neither DDP nor FSDP2.
        InputError: it asks to share the model, and there is one process.
        MissingExtraError: accelerate is not installed.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    sharded = _set(_SHARDED)
    if sharded:
        _check_sharding(size)
    if size == 1:
        return ALONE
    torch = need("torch", "training in processes")
    accelerate = need("accelerate", "training in processes")
    state = accelerate.PartialState(cpu=not torch.cuda.is_available(), timeout=TIMEOUT)
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    return World(
        state.num_processes, state.process_index, state.local_process_index, local_size, sharded
    )


def check_sharing(processes: int, settings: TrainSettings, *, sharded: bool) -> None:
    """See that processes can share a training.

    Args:
        processes: how many.
        settings: what is trained.
        sharded: whether they share the model too.

    Raises:
        InputError: there are more than examples in a batch, or the optimizer is for one.
        UnsupportedError: the method's model cannot be shared.
    """
    if processes > settings.batch_size:
        raise InputError(
            f"{processes} processes cannot share a batch of {settings.batch_size}; raise "
            "--batch-size, or start fewer"
        )
    if processes > 1 and settings.optimizer not in ("auto", "adamw"):
        raise InputError(
            f"the optimizer {settings.optimizer} is for one process; {processes} processes take "
            "adamw"
        )
    if sharded and settings.base_weights == "packed":
        raise InputError(
            "a packed base is not in memory, so there is nothing to share; leave out --shard, or "
            "base_weights=packed"
        )
    reason = METHODS[settings.method].unshardable
    if sharded and reason:
        raise UnsupportedError(
            f"the method {settings.method} {reason}; take --method lora, or leave out --shard"
        )


def _set(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true")


def _check_sharding(size: int) -> None:
    found = os.environ.get("FSDP_VERSION", "1")
    if found != "2":
        raise UnsupportedError(
            f"accelerate was told to shard the model by FSDP {found}, and edgeadapt does by FSDP "
            "2: give accelerate launch --fsdp_version 2, or type: edgeadapt train --processes N "
            "--shard"
        )
    for name, what in _NOT_DONE.items():
        if _set(name):
            raise UnsupportedError(f"accelerate was told to {what}")
    if size == 1:
        raise InputError(
            "one process has nobody to share the model with: start two or more (accelerate launch "
            "--num_processes N, or edgeadapt train --processes N --shard)"
        )
    # With it transformers leaves a model empty in all processes but the first; they load it, and
    # then keep their share.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
