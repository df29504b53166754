"""Bottlenecks behind the blocks of a torch model; see `adapters.sequential`.

Imports torch; import it only to train or to run an adapter.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

from edgeadapt.adapters.sequential import (
    CONFIG_KEY,
    FORMS,
    MODULE,
    default_width,
    projections,
)
from edgeadapt.adapters.spec import read_spec
from edgeadapt.console import log
from edgeadapt.safetensors_io import SafetensorsSource
from edgeadapt.training.inserted import Inserted, checked_width, insert_all, restore
from edgeadapt.weights import WeightSource, parameter_count, read_tensor


class Sequential(Inserted):
    """W_up act(W_down y + b_down) + b_up, which begins as zero."""

    def __init__(self, name: str, hidden: int, width: int, device: torch.device) -> None:
        super().__init__()
        place = {"device": device, "dtype": torch.float32}
        self.name = name
        self.down = torch.nn.Linear(hidden, width, **place)
        self.up = torch.nn.Linear(width, hidden, **place)
        self.act = {"gelu": torch.nn.functional.gelu, "relu": torch.relu}[FORMS[name].activation]
        torch.nn.init.zeros_(self.up.weight)
        torch.nn.init.zeros_(self.up.bias)

    def config(self) -> dict[str, Any]:
        """What adapter_config.json says of it."""
        places = " and ".join(FORMS[self.name].places)
        return {
            "peft_type": self.name,
            "r": self.down.out_features,
            "placement": f"behind {places} of each layer",
        }

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        """What to add to a block's result."""
        added: torch.Tensor = self.up(self.act(self.down(given.to(self.down.weight.dtype))))
        return added.to(given.dtype)


def attach(model: Any, base: Path, name: str, width: int | None, seed: int) -> None:
    """Freeze a transformers model and put a trainable bottleneck behind each of its blocks.

    Args:
        model: the module.
        base: its folder.
        name: of the form, `HOULSBY` or `PFEIFFER`.
        width: of the bottlenecks; by default a sixteenth of the hidden width.
        seed: of their first values.

    Raises:
        UnsupportedError: the model has no such blocks.
    """
    source = SafetensorsSource(base)
    hidden = int(source.config["hidden_size"])
    width = width or default_width(hidden)
    places = projections(source, FORMS[name])
    insert_all(model, places, functools.partial(_attach, name=name, width=width), seed)
    trained, total = len(places) * (2 * hidden * width + width + hidden), parameter_count(source)
    log.info(
        "%d bottlenecks of width %d behind the blocks: %.2f%% of the base's weights are trained "
        "beside them, and stored", len(places), width, 100 * trained / total,
    )  # fmt: skip


def _attach(projection: Any, name: str, width: int) -> None:
    device = projection.weight.device
    projection.add_module(MODULE, Sequential(name, projection.out_features, width, device))
    projection.register_forward_hook(
        lambda module, inputs, output: output + getattr(module, MODULE)(output)
    )


def load(model: Any, base: Path, folder: Path) -> Any:
    """The model with the bottlenecks of an adapter folder, in eval mode.

    Raises:
        AdapterError: they do not fit it.
    """
    name = read_spec(folder).peft_type
    width = checked_width(folder, ".up.weight", int(model.config.hidden_size))
    places = projections(SafetensorsSource(base), FORMS[name])
    insert_all(model, places, functools.partial(_attach, name=name, width=width), seed=0)
    return restore(model, folder).eval()


def attach_from(model: Any, source: WeightSource) -> None:
    """Give a model the bottlenecks that a source has, with their weights.

    Args:
        model: a transformers model with the other tensors of the source.
        source: one whose config tells of bottlenecks.
    """
    name, infos = str(source.config[CONFIG_KEY]), source.tensors()
    places = projections(source, FORMS[name])
    width = infos[f"{places[0]}.{MODULE}.down.weight"].shape[0]
    insert_all(model, places, functools.partial(_attach, name=name, width=width), seed=0)
    ours = [tensor for tensor in infos if f".{MODULE}." in tensor]
    state = {tensor: torch.from_numpy(read_tensor(source, tensor)) for tensor in ours}
    model.load_state_dict(state, strict=False)
