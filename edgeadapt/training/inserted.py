"""Modules of ours in a frozen torch model: trained there, saved alone, and put back.

Imports torch; import it only to train or to run an adapter unmerged.
"""

from __future__ import annotations

import abc
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from edgeadapt.adapters.spec import CONFIG, WEIGHTS, read_spec
from edgeadapt.errors import AdapterError
from edgeadapt.safetensors_io import SafetensorsFile
from edgeadapt.weights import read_tensor


class Inserted(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    """What all of them share."""

    @abc.abstractmethod
    def config(self) -> dict[str, Any]:
        """What adapter_config.json says of the method: `peft_type`, `r` and `placement`."""


def insert_all(model: Any, places: Sequence[str], insert: Callable[[Any], None], seed: int) -> None:
    """Freeze a model, and put a trainable module at each place, with first values from a seed.

    Args:
        model: a transformers model.
        places: full names of the modules that get one.
        insert: gives one to such a module.
        seed: of the first values.
    """
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for place in places:
            insert(model.get_submodule(place))


def checked_width(folder: Path, widened: str, hidden: int) -> int:
    """The width of the modules in an adapter folder, before memory is asked for.

    Args:
        folder: what `save` wrote.
        widened: the end of the names of their matrices of shape (hidden, width).
        hidden: the model's.

    Raises:
        AdapterError: they are of another width than its config says, or for another model.
    """
    width = read_spec(folder).r
    found = SafetensorsFile(folder / WEIGHTS).tensors().items()
    shapes = {info.shape for name, info in found if name.endswith(widened)}
    if width < 1 or shapes != {(hidden, width)}:
        raise _misfit(folder)
    return width


def trained_tensors(model: Any) -> dict[str, torch.Tensor]:
    """The modules' weights by their names in the model, contiguous, on the CPU."""
    return {
        f"{name}.{part}": parameter.detach().cpu().contiguous()
        for name, module in model.named_modules()
        if isinstance(module, Inserted)
        for part, parameter in module.named_parameters()
    }


def has_inserted(model: Any) -> bool:
    """Whether there are such modules in a model."""
    return any(isinstance(module, Inserted) for module in model.modules())


def save(
    model: Any, folder: Path, *, base: str, tensors: dict[str, torch.Tensor] | None = None
) -> None:
    """Write the adapter folder: safetensors and their config.

    Args:
        model: the module.
        folder: to make.
        base: the base's name.
        tensors: the modules' weights, where the model has only shares of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = trained_tensors(model) if tensors is None else tensors
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    first = next(module for module in model.modules() if isinstance(module, Inserted))
    config = {"task_type": "CAUSAL_LM", "base_model_name_or_path": base} | first.config()
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def restore(model: Any, folder: Path) -> Any:
    """Take the modules' weights from a folder that `save` wrote.

    Raises:
        AdapterError: they do not fit.
    """
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
