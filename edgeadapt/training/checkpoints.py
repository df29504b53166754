"""The work folder of a training run: what it was started with, and its complete checkpoints."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeadapt.console import log
from edgeadapt.errors import CorruptFileError, InputError
from edgeadapt.files import atomic_file, fsync, read_json, write_json

_INPUTS = "inputs.json"
_ORDER = "order.jsonl"
_COMPLETE = "complete"


class WorkFolder:
    """Where a run keeps what it needs to go on after it was killed."""

    def __init__(self, path: Path, inputs: dict[str, Any]) -> None:
        """Open the folder, or start it afresh if it belongs to a run with other inputs.

        Raises:
            InputError: the folder holds something else, which is left alone.
        """
        self.path = path
        known = self._known_inputs()
        if known is not None and known != inputs:
            changed = sorted(k for k in inputs | known if inputs.get(k) != known.get(k))
            log.info("%s is of a run with other %s: starting afresh", path, " and ".join(changed))
            self._clear()
            known = None
        if known is None:
            path.mkdir(parents=True, exist_ok=True)
            write_json(path / _INPUTS, inputs)

    def _clear(self) -> None:
        """Remove everything, and last the file that says whose folder this is."""
        for entry in self.path.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name != _INPUTS:
                entry.unlink()

    def _known_inputs(self) -> dict[str, Any] | None:
        if not self.path.exists():
            return None
        if not self.path.is_dir():
            raise InputError(f"the work folder {self.path} is a file; name another --work")
        try:
            known = read_json(self.path / _INPUTS)
        except CorruptFileError:
            known = {}
        except InputError as error:
            # A run that was killed at its very beginning leaves only a temporary file.
            if all(entry.name.startswith(f".{_INPUTS}.") for entry in self.path.iterdir()):
                return None
            raise InputError(
                f"{self.path} is not a work folder of edgeadapt train and is not empty; "
                "name another --work"
            ) from error
        return known if isinstance(known, dict) else {}

    def newest_checkpoint(self) -> tuple[int, Path] | None:
        """Step and folder of the newest complete checkpoint; incomplete ones are removed."""
        found = []
        for folder in self.path.glob("checkpoint-*"):
            if (folder / _COMPLETE).is_file():
                found.append((int(folder.name.partition("-")[2]), folder))
            else:
                shutil.rmtree(folder)
        return max(found, default=None)

    def mark_complete(self, step: int) -> None:
        """Say that everything of a checkpoint is on the disk; called last."""
        folder = self.path / f"checkpoint-{step}"
        for path in (*folder.rglob("*"), folder):
            fsync(path)
        (folder / _COMPLETE).touch()
        fsync(folder)

    def note_examples(self, step: int, examples: Sequence[int]) -> None:
        """Record which examples a step is about to be trained on."""
        with (self.path / _ORDER).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "examples": list(examples)}) + "\n")

    def rewind(self, step: int) -> None:
        """Forget the examples of steps after a checkpoint: they will be trained on again."""
        path = self.path / _ORDER
        if not path.is_file():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except ValueError:  # the line that was being written when the run was killed
                continue
        with atomic_file(path, overwrite=True) as partial:
            partial.write_text("".join(kept), encoding="utf-8")

    def examples_seen(self) -> list[list[int]]:
        """The examples of each step so far, in order."""
        path = self.path / _ORDER
        if not path.is_file():
            return []
        steps: dict[int, list[int]] = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            steps.setdefault(entry["step"], []).extend(entry["examples"])
        return [steps[step] for step in sorted(steps)]

    def remember(self, name: str, value: Any) -> None:
        """Keep a JSON value under a name."""
        write_json(self.path / f"{name}.json", value)

    def recall(self, name: str) -> Any | None:
        """The value kept under a name, if any."""
        path = self.path / f"{name}.json"
        return read_json(path) if path.is_file() else None
