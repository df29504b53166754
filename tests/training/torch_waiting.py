"""Train a little in a process of its own, and print how OpenMP was to wait when torch came.

python -m tests.training.torch_waiting BASE DATA OUT
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType


class Watch(MetaPathFinder):
    """Finds nothing, and notes the variable when torch is looked for."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> None:
        if name == "torch":
            sys.stdout.write(f"{os.environ.get('OMP_WAIT_POLICY')}\n")


def main(base: Path, data: Path, out: Path) -> None:
    sys.meta_path.insert(0, Watch())
    from edgeadapt.training.settings import TrainSettings
    from edgeadapt.training.train import train

    train(base, data, None, TrainSettings(method="lora", max_steps=1), out, base_spec="tiny")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
