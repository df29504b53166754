"""The processes that train one model together, each on its share of every batch.

`edgeadapt train --processes` starts them, or `accelerate launch`, on one machine or several; both
say who is who in the environment, as torch.distributed has it (RANK, WORLD_SIZE, LOCAL_RANK).
"""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass
from typing import Any

from edgeadapt.errors import UnsupportedError
from edgeadapt.extras import need

TIMEOUT = datetime.timedelta(days=1)
"""One scores the held-out data while the others wait."""


@dataclass(frozen=True)
class World:
    """This process among those that train together."""

    size: int = 1
    rank: int = 0
    local_rank: int = 0

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


ALONE = World()


def this_world() -> World:
    """Join the others, if there are any: NCCL on GPUs, gloo on CPUs.

    Raises:
        UnsupportedError: the launcher asks for what is not shared batches (DDP).
        MissingExtraError: accelerate is not installed.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true"):
        # accelerate 1.15 forgets this on CPUs without a word, and trains by DDP.
        raise UnsupportedError(
            "accelerate was told to shard the model (FSDP), which accelerate does not do on CPUs "
            "and edgeadapt does not do on GPUs; start it with --multi_gpu or --cpu, or type: "
            "edgeadapt train --processes N"
        )
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return ALONE
    torch = need("torch", "training in processes")
    accelerate = need("accelerate", "training in processes")
    state = accelerate.PartialState(cpu=not torch.cuda.is_available(), timeout=TIMEOUT)
    return World(state.num_processes, state.process_index, state.local_process_index)
