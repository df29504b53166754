"""Which optimizer trains, by the memory that its state takes.

Imports torch; import it only to train.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.training_args import OptimizerNames

from edgeadapt.memory import available_memory
from edgeadapt.training.settings import OptimizerName

_STATE = 8
"""Bytes for each trained parameter: two averages in float32."""

_STATE_8BIT = 2 + 2 * 4 / 256
"""In 8 bits, with a float32 scale for each block of 256 (arXiv 2110.02861); transformers leaves
embeddings, whose gradients are uneven, in float32."""

_LEFT_FOR_ACTIVATIONS = 0.25
"""Share of the free memory that gradients and state leave alone."""

_IN_TRANSFORMERS = {
    "adamw": OptimizerNames.ADAMW_TORCH,
    "adamw-8bit": OptimizerNames.ADAMW_BNB,
    "adafactor": OptimizerNames.ADAFACTOR,
}


@dataclass(frozen=True)
class Need:
    """Bytes of memory while training, without activations."""

    weights: int
    gradients: int
    parameters: int
    """How many are trained."""
    in_embeddings: int = 0
    """How many of these are in token embeddings."""

    @property
    def state(self) -> int:
        """Bytes of AdamW's state."""
        return _STATE * self.parameters

    @property
    def state_8bit(self) -> int:
        """The same, where it is held in 8 bits."""
        return _STATE * self.in_embeddings + round(
            _STATE_8BIT * (self.parameters - self.in_embeddings)
        )


def need_of(model: Any) -> Need:
    """What training a model takes, from its parameters."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return Need(
        sum(p.numel() * p.element_size() for p in model.parameters()),
        sum(p.numel() * p.element_size() for p in trained),
        sum(p.numel() for p in trained),
        sum(
            module.weight.numel()
            for module in model.modules()
            if isinstance(module, torch.nn.Embedding) and module.weight.requires_grad
        ),
    )


def free_memory(device: Any) -> int:
    """Bytes free for a model on a torch device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_memory()


def choose(need: Need, free: int) -> tuple[OptimizerName, str]:
    """The optimizer to take where none was asked for, and why.

    Args:
        need: what training takes; the weights are in memory already.
        free: bytes free beside them.
    """
    room = free * (1 - _LEFT_FOR_ACTIVATIONS)
    plain = need.gradients + need.state
    told = (
        f"weights {_mib(need.weights)}, gradients {_mib(need.gradients)}, state in float32 "
        f"{_mib(need.state)}; {_mib(free)} free beside the weights"
    )
    if plain <= room:
        return "adamw", told
    told += f", a quarter of it left for activations: {_mib(plain)} do not fit"
    if need.gradients + need.state_8bit <= room:
        return "adamw-8bit", f"{told}, with a state of {_mib(need.state_8bit)} they do"
    return "adamw-offloaded", f"{told}, and a state in 8 bits would not help"


def set_optimizer(trainer: Any, name: OptimizerName, folder: Path) -> None:
    """Have a transformers trainer use an optimizer.

    Args:
        trainer: one that has not begun to train.
        name: any but `auto`.
        folder: where an offloaded state may lie; on the GPU it goes to the machine's memory.
    """
    args = trainer.args
    if name != "adamw-offloaded":
        args.optim = _IN_TRANSFORMERS[name]
    elif args.device.type == "cuda":
        args.optim = OptimizerNames.PAGED_ADAMW
    else:
        trainer.optimizer_cls_and_kwargs = (
            OffloadedAdamW,
            {
                "folder": folder,
                "lr": args.learning_rate,
                "betas": (args.adam_beta1, args.adam_beta2),
                "eps": args.adam_epsilon,
            },
        )


class OffloadedAdamW(torch.optim.AdamW):  # type: ignore[misc]  # torch is not read
    """AdamW with its two averages in a file that is mapped into memory.

    The same arithmetic in float32; the system writes out and reads in what memory has no room for.
    The file has no name any more once it is mapped, and goes with the process.
    """

    def __init__(self, params: Iterable[Any], *, folder: Path, **options: Any) -> None:
        """Take the room on the disk.

        Raises:
            OSError: the disk is full.
        """
        super().__init__(params, **options, foreach=False)
        trained = [p for group in self.param_groups for p in group["params"]]
        mapped = _mapped(folder / "optimizer-state", 2 * sum(p.numel() for p in trained))
        start = 0
        for parameter in trained:
            averages = []
            for _ in range(2):
                piece = mapped[start : start + parameter.numel()]
                averages.append(piece.view(parameter.shape))
                start += parameter.numel()
            self.state[parameter] = {
                "step": torch.tensor(0.0), "exp_avg": averages[0], "exp_avg_sq": averages[1],
            }  # fmt: skip

    def load_state_dict(self, state_dict: Any) -> None:
        """Take a saved state into the file."""
        mapped = {parameter: dict(state) for parameter, state in self.state.items()}
        super().load_state_dict(state_dict)
        for parameter, state in self.state.items():
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = mapped[parameter][name].copy_(state[name])


def _mapped(path: Path, count: int) -> Any:
    """Zeros in float32, shape (count,), in a file that is then without a name."""
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 4 * count)  # a full disk is found now, not by a signal
    try:
        return torch.from_file(str(path), shared=True, size=count, dtype=torch.float32)
    finally:
        path.unlink()


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"
