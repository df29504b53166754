"""Run as a script in each of several processes: train, and tell what this one held, as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from edgeadapt.training import loop, run
from edgeadapt.training.model import load_model
from edgeadapt.training.settings import TrainSettings
from edgeadapt.training.train import train

held: dict[str, int] = {}


def size(tensor: Any) -> int:
    """Bytes of a tensor in this process."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return int(local.numel() * local.element_size())


class Holding(loop.Trainer):
    """Looks at what is held before each step."""

    def _clip_grad_norm(self, model: Any) -> Any:
        trained = [p for p in model.parameters() if p.requires_grad]
        held["gradients"] = sum(size(p.grad) for p in trained)
        held["weights"] = sum(size(p) for p in model.parameters())
        held["state"] = sum(
            size(value)
            for state in self.optimizer.optimizer.state.values()
            for value in state.values()
            if isinstance(value, torch.Tensor)
        )
        return super()._clip_grad_norm(model)


def main(base: Path, data: Path, out: Path, method: str, dtype: str) -> None:
    def load(*arguments: Any) -> tuple[Any, dict[str, Any]]:
        model, told = load_model(*arguments)
        return model.to(getattr(torch, dtype)), told

    run.load_model = load
    loop.Trainer = Holding  # type: ignore[misc]
    settings = TrainSettings(
        method=method, max_steps=2, batch_size=4, gradient_accumulation=2, save_every_s=1e6
    )  # type: ignore[arg-type]
    losses = train(base, data, None, settings, out, base_spec="tiny").record["losses"]
    sys.stdout.write(json.dumps({"held": held, "losses": losses}) + "\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), method=sys.argv[4], dtype=sys.argv[5])
