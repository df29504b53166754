"""Where a transformers model keeps each weight of its checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgeadapt.allocation.matrices import Matrix
from edgeadapt.errors import UnsupportedError


@dataclass(frozen=True)
class Place:
    """A checkpoint's matrix within a parameter of the loaded model."""

    parameter: str
    expert: int | None
    """Which matrix, if the parameter stacks several."""
    first_row: int
    rows: int

    def of(self, values: Any) -> Any:
        """Its part of the parameter's values, or gradient: a torch view (rows, columns)."""
        if self.expert is not None:
            values = values[self.expert]
        return values[self.first_row : self.first_row + self.rows]


def find_places(model: Any, matrices: Sequence[Matrix]) -> dict[str, Place]:
    """Checkpoint name of every matrix -> where it is.

    Transformers 5 stacks a layer's experts when it loads them: gate above up in one parameter,
    down in another.

    Raises:
        UnsupportedError: a weight is kept in a way that is not known here.
    """
    parameters = dict(model.named_parameters())
    experts = _expert_modules(model)
    places = {}
    for matrix in matrices:
        for number, part in enumerate(matrix.plan.parts):
            if part.name in parameters:
                places[part.name] = Place(part.name, None, 0, len(parameters[part.name]))
                continue
            module = experts.get(matrix.layer)
            if module is None or len(matrix.plan.shape) != 3:
                raise UnsupportedError(
                    f"transformers does not keep {part.name!r} in a way that edgeadapt knows, so "
                    "its effect cannot be measured; give --quant in place of --max-size"
                )
            height = matrix.plan.shape[1]
            name = "down_proj" if "down" in matrix.role else "gate_up_proj"
            first = height if "up" in matrix.role else 0
            places[part.name] = Place(f"{module}.{name}", number, first, height)
    return places


def _expert_modules(model: Any) -> dict[int | None, str]:
    """Layer -> name of the module whose two parameters are all experts of it."""
    found: dict[int | None, str] = {}
    for name, _ in model.named_parameters():
        module, _, leaf = name.rpartition(".")
        if leaf == "gate_up_proj":
            pieces = module.split(".")
            found[int(pieces[pieces.index("layers") + 1])] = module
    return found
