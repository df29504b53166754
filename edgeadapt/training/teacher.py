"""A model whose predictions another learns: distillation (arXiv 1503.02531).

With a quantized base as the learner and the full-precision adapted model as the teacher, a LoRA
gives back part of what quantization took.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeadapt.adapters.vocabulary import same_vocabulary
from edgeadapt.errors import InputError
from edgeadapt.export import ModelToExport


def check_teacher(base: Path, teacher: Path) -> None:
    """See that two model folders mean the same by a token.

    Raises:
        InputError: their vocabularies differ.
    """
    if not same_vocabulary(base, teacher):
        raise InputError(
            f"the teacher {teacher} has another vocabulary than {base}, so its predictions are of "
            "other tokens; take a teacher of the same family"
        )


def load_teacher(teacher: ModelToExport, device: Any) -> Any:
    """The model in float32, frozen, as a transformers module on `device`."""
    from edgeadapt.calibration.activations import load_model

    return load_model(teacher.source).requires_grad_(False).to(device)


def taught_by(teacher: ModelToExport) -> dict[str, Any]:
    """What the record says of a teacher: its hashes and name, JSON-serializable."""
    told = ("base", "adapter", "adapters")
    return {"name": teacher.name} | {
        key: teacher.lineage[key] for key in told if teacher.lineage.get(key)
    }
