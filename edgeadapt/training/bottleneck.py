"""Gated bottlenecks beside the feed-forward blocks of a torch model; see `adapters.bottleneck`.

Imports torch; import it only to train or to run an adapter unmerged.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from edgeadapt.adapters.bottleneck import (
    MODULE,
    PEFT_TYPE,
    filling_width,
    gated_blocks,
    growth,
    padded_width,
)
from edgeadapt.adapters.spec import CONFIG, WEIGHTS, read_spec
from edgeadapt.console import log
from edgeadapt.errors import AdapterError
from edgeadapt.safetensors_io import SafetensorsFile, SafetensorsSource
from edgeadapt.weights import parameter_count, read_tensor


class Bottleneck(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    """W_down (act(W_gate x) * (W_up x)), which begins as zero."""

    def __init__(self, inputs: int, width: int, act: Any, like: torch.Tensor) -> None:
        super().__init__()
        place = {"device": like.device, "dtype": torch.float32}
        self.gate = torch.nn.Linear(inputs, width, bias=False, **place)
        self.up = torch.nn.Linear(inputs, width, bias=False, **place)
        self.down = torch.nn.Linear(width, inputs, bias=False, **place)
        self.act = act
        torch.nn.init.zeros_(self.down.weight)

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
    _attach_all(model, blocks, width, seed)
    total, (trained, stored) = parameter_count(source), growth(source.config, width, len(blocks))
    log.info(
        "bottlenecks of width %d: %.2f%% of the base's weights are trained beside them; an "
        "artifact stores %.2f%% more (feed-forward width %d instead of %d)",
        width, 100 * trained / total, 100 * stored / total,
        padded_width(intermediate, width), intermediate,
    )  # fmt: skip


def _attach_all(model: Any, blocks: list[str], width: int, seed: int) -> None:
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name in blocks:
            _attach(model.get_submodule(name), width)


def _attach(block: Any, width: int) -> None:
    act = getattr(block, "act_fn", None) or block.activation_fn
    weight = block.down_proj.weight
    block.add_module(MODULE, Bottleneck(block.down_proj.out_features, width, act, weight))
    block.register_forward_hook(
        lambda module, inputs, output: output + getattr(module, MODULE)(inputs[0])
    )


def has_bottlenecks(model: Any) -> bool:
    """Whether `attach` or `load` put bottlenecks into a model."""
    return any(isinstance(module, Bottleneck) for module in model.modules())


def trained_tensors(model: Any) -> dict[str, torch.Tensor]:
    """The bottlenecks' weights by their names in the model, contiguous, on the CPU."""
    return {
        f"{name}.{part}": parameter.detach().cpu().contiguous()
        for name, module in model.named_modules()
        if isinstance(module, Bottleneck)
        for part, parameter in module.named_parameters()
    }


def save(
    model: Any, folder: Path, *, base: str, tensors: dict[str, torch.Tensor] | None = None
) -> None:
    """Write the adapter folder: safetensors and their config.

    Args:
        model: the module.
        folder: to make.
        base: the base's name.
        tensors: the bottlenecks' weights, where the model has only shares of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = trained_tensors(model) if tensors is None else tensors
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    width = next(iter(t.shape[1] for name, t in tensors.items() if name.endswith(".down.weight")))
    config = {
        "peft_type": PEFT_TYPE,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": width,
        "placement": "parallel to each feed-forward block, and gated as it is",
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load(model: Any, base: Path, folder: Path) -> Any:
    """The model with the bottlenecks of an adapter folder, in eval mode.

    Raises:
        AdapterError: they do not fit it.
    """
    width = read_spec(folder).r
    found = SafetensorsFile(folder / WEIGHTS).tensors().items()
    shapes = {info.shape for name, info in found if name.endswith(".down.weight")}
    if width < 1 or shapes != {(int(model.config.hidden_size), width)}:
        raise _misfit(folder)  # before memory is asked for
    _attach_all(model, gated_blocks(SafetensorsSource(base)), width, seed=0)
    return _fill(model, folder).eval()


def restore(model: Any, folder: Path) -> None:
    """Take the bottlenecks' weights from a folder that `save` wrote."""
    _fill(model, folder)


def _fill(model: Any, folder: Path) -> Any:
    file, own = SafetensorsFile(folder / WEIGHTS), trained_tensors(model)
    if {name: tuple(tensor.shape) for name, tensor in own.items()} != {
        name: info.shape for name, info in file.tensors().items()
    }:
        raise _misfit(folder)
    state = {name: torch.from_numpy(read_tensor(file, name)) for name in own}
    model.load_state_dict(state, strict=False)
    return model


def _misfit(folder: Path) -> AdapterError:
    return AdapterError(f"the bottlenecks in {folder} do not fit the base; give theirs")
