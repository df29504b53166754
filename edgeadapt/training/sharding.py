"""A model shared out over the processes that train it: accelerate's FSDP2, and what gathers it.

Checkpoints and results are those of one process, so that any number of processes goes on from
them. Imports torch; import it only to train.
"""

from __future__ import annotations

import contextlib
import ctypes
from typing import Any

import accelerate
import torch
from accelerate.utils import DistributedType
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor

_M_MMAP_THRESHOLD = -3  # malloc.h


def give_memory_back() -> None:
    """Have glibc return blocks of a layer's size to the system as soon as they are free.

    Left to itself it raises the size from which it does so to 32 MiB, and what was gathered for
    one layer stays beside what is gathered for the next: on the 135M model as much memory as the
    shares save.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 18)


def plugin() -> Any:
    """What accelerate is told: each layer is gathered when it is its turn, and given up after it.

    Gradients are summed in float32 where the pass is in bfloat16.
    """
    cuda = torch.cuda.is_available()
    bfloat16 = torch.bfloat16 if cuda and torch.cuda.is_bf16_supported() else None
    return accelerate.FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=True,
        auto_wrap_policy="transformer_based_wrap",
        mixed_precision_policy=MixedPrecisionPolicy(
            param_dtype=bfloat16, reduce_dtype=bfloat16 and torch.float32
        ),
    )


def shard_on_cpus(accelerator: Any, told: Any) -> None:
    """Have an accelerator do on CPUs what its plugin told it.

    accelerate 1.15 heeds a plugin for FSDP where there are GPUs, and trains by DDP elsewhere
    without a word; torch shards on both alike.
    """
    state = accelerator.state
    if state.distributed_type == DistributedType.MULTI_CPU:
        state.fsdp_plugin = told
        for shared in (state._shared_state, accelerate.PartialState._shared_state):
            shared["distributed_type"] = DistributedType.FSDP


def is_sharded(model: Any) -> bool:
    """Whether this process holds a share of a model."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def gathered(model: Any, *, keep: bool) -> dict[str, Any] | None:
    """The trained tensors of a sharded model by name, on the CPU; every process calls it.

    Args:
        model: the module.
        keep: whether this process wants them; the others only give.

    Returns:
        The tensors, or None where nothing is sharded or they are not wanted. Names that share a
        parameter share the tensor.
    """
    if not is_sharded(model):
        return None
    wholes: dict[Any, Any] = {}
    state = {
        name: tensor
        for name, tensor in model.state_dict(keep_vars=True).items()
        if tensor.requires_grad
    }
    for tensor in state.values():
        if tensor not in wholes:
            wholes[tensor] = _whole(tensor, keep)
    return {name: wholes[tensor] for name, tensor in state.items()} if keep else None


def _whole(tensor: Any, keep: bool) -> Any:
    """The tensor that this is a share of, in one process after the other."""
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.detach().cpu().contiguous() if keep else None


def gather_optimizer_state(optimizer: Any, *, keep: bool) -> None:
    """Have a torch optimizer give and take the state of whole tensors.

    Args:
        optimizer: one whose parameters are, or will be, sharded; every process asks for its state.
        keep: whether this process wants it.
    """

    def give(_: Any, state: dict[str, Any]) -> dict[str, Any]:
        wholes = torch.utils._pytree.tree_map_only(
            DTensor, lambda tensor: _whole(tensor, keep), state
        )
        return dict(wholes)

    def take(optimizer: Any, state: dict[str, Any]) -> dict[str, Any]:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        shares = {
            number: {name: _share(value, parameters[number]) for name, value in entry.items()}
            for number, entry in state["state"].items()
        }
        return state | {"state": shares}

    optimizer.register_state_dict_post_hook(give)
    optimizer.register_load_state_dict_pre_hook(take)


def _share(value: Any, parameter: Any) -> Any:
    """Of a tensor for each of a sharded parameter's values, this process's."""
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    mesh, places = parameter.device_mesh, parameter.placements
    return distribute_tensor(value.to(parameter.device), mesh, places, src_data_rank=None).clone()
