"""Gated bottlenecks beside the feed-forward blocks of a torch model; see `adapters.bottleneck`.

Imports torch; import it only to train or to run an adapter unmerged.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

from edgeadapt.adapters.bottleneck import (
    MODULE,
    PEFT_TYPE,
    filling_width,
    gated_blocks,
    growth,
    padded_width,
)
from edgeadapt.console import log
from edgeadapt.safetensors_io import SafetensorsSource
from edgeadapt.training.inserted import Inserted, checked_width, insert_all, restore
from edgeadapt.weights import parameter_count


class Bottleneck(Inserted):
    """W_down (act(W_gate x) * (W_up x)), which begins as zero."""

    def __init__(self, inputs: int, width: int, act: Any, like: torch.Tensor) -> None:
        super().__init__()
        place = {"device": like.device, "dtype": torch.float32}
        self.gate = torch.nn.Linear(inputs, width, bias=False, **place)
        self.up = torch.nn.Linear(inputs, width, bias=False, **place)
        self.down = torch.nn.Linear(width, inputs, bias=False, **place)
        self.act = act
        torch.nn.init.zeros_(self.down.weight)

    def config(self) -> dict[str, Any]:
        """What adapter_config.json says of it."""
        return {
            "peft_type": PEFT_TYPE,
            "r": self.gate.out_features,
            "placement": "parallel to each feed-forward block, and gated as it is",
        }

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """What to add to the block's output."""
        inputs = hidden.to(self.gate.weight.dtype)
        added: torch.Tensor = self.down(self.act(self.gate(inputs)) * self.up(inputs))
        return added.to(hidden.dtype)


def attach(model: Any, base: Path, width: int | None, seed: int) -> None:
    """Freeze a transformers model and put a trainable bottleneck beside each feed-forward block.

    Args:
        model: the module.
        base: its folder.
        width: of the bottlenecks; by default what the padding to a super-block leaves room for.
        seed: of their first values.

    Raises:
        UnsupportedError: the model has no gated feed-forward blocks.
    """
    source = SafetensorsSource(base)
    intermediate = int(source.config["intermediate_size"])
    width = width or filling_width(intermediate)
    blocks = gated_blocks(source)
    insert_all(model, blocks, functools.partial(_attach, width=width), seed)
    total, (trained, stored) = parameter_count(source), growth(source.config, width, len(blocks))
    log.info(
        "bottlenecks of width %d: %.2f%% of the base's weights are trained beside them; an "
        "artifact stores %.2f%% more (feed-forward width %d instead of %d)",
        width, 100 * trained / total, 100 * stored / total,
        padded_width(intermediate, width), intermediate,
    )  # fmt: skip


def _attach(block: Any, width: int) -> None:
    act = getattr(block, "act_fn", None) or block.activation_fn
    weight = block.down_proj.weight
    block.add_module(MODULE, Bottleneck(block.down_proj.out_features, width, act, weight))
    block.register_forward_hook(
        lambda module, inputs, output: output + getattr(module, MODULE)(inputs[0])
    )


def load(model: Any, base: Path, folder: Path) -> Any:
    """The model with the bottlenecks of an adapter folder, in eval mode.

    Raises:
        AdapterError: they do not fit it.
    """
    width = checked_width(folder, ".down.weight", int(model.config.hidden_size))
    blocks = gated_blocks(SafetensorsSource(base))
    insert_all(model, blocks, functools.partial(_attach, width=width), seed=0)
    return restore(model, folder).eval()
