"""What was chosen for a size, and how it is written down."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gguf.constants import GGMLQuantizationType

from edgeadapt.allocation.grid import Grid
from edgeadapt.allocation.matrices import Matrix
from edgeadapt.allocation.sensitivity import Sensitivity
from edgeadapt.converters.gguf.imatrix import Imatrix
from edgeadapt.converters.gguf.options import GgufOptions

T = GGMLQuantizationType

_MIX = {T.Q3_K: "Q3_K_M", T.Q4_K: "Q4_K_M", T.Q5_K: "Q5_K_M", T.F16: "Q8_0"}
"""`general.file_type` has no number for "chosen one by one"; it gets that of the mix nearest to
the type of most weights. F16 as a mix would quantize nothing."""


LONGEST = 0.111111
"""A figure that stands in for one that is not known yet, where the file's size is asked for."""


@dataclass(frozen=True)
class Row:
    """Matrices of one role that got the same type."""

    role: str
    kind: GGMLQuantizationType
    count: int
    nbytes: int
    predicted_kl: float | None

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return vars(self) | {"kind": self.kind.name}


@dataclass(frozen=True)
class Allocation:
    """A type for each matrix, within a size."""

    label: str
    """The size as it was asked for."""
    max_bytes: int
    file_bytes: int
    """Of the whole file with these types."""
    matrices: tuple[Matrix, ...]
    types: Mapping[str, GGMLQuantizationType]
    data: Mapping[str, Any]
    """Name and hash of the calibration data."""
    grid: Grid | None = None
    """That the base's weights lie on."""
    importance: Imatrix | None = None
    """What the quantizers weigh columns by; None where all fits in F16."""
    sensitivity: Sensitivity | None = None
    predicted_kl: float | None = None
    """Mean KL divergence from the unrounded model, in nats."""
    measured_kl: float | None = None
    """The same, measured on the calibration text in torch."""
    split_max_bytes: int = 0

    @property
    def mix(self) -> str:
        """The named quantization that stands for it where one is needed."""
        if self.importance is None:
            return "F16"
        weights: dict[GGMLQuantizationType, int] = defaultdict(int)
        for matrix in self.matrices:
            weights[self.types[matrix.name]] += matrix.plan.rows * matrix.plan.columns
        kind = max(weights, key=lambda kind: (weights[kind], kind.name))
        return _MIX.get(kind, str(kind.name))

    @property
    def matrix_bytes(self) -> int:
        """Of the matrices alone."""
        return sum(matrix.nbytes(self.types[matrix.name]) for matrix in self.matrices)

    def options(self) -> GgufOptions:
        """What the GGUF converter is to do."""
        return GgufOptions(
            self.importance,
            tuple(self._patterns()) if self.importance is not None else (),
            self.split_max_bytes,
            self.record(),
        )

    def rows(self) -> list[Row]:
        """The choice by role and type, in file order of the roles, the most bits first."""
        groups: dict[tuple[str, GGMLQuantizationType], list[Matrix]] = defaultdict(list)
        for matrix in self.matrices:
            groups[matrix.role, self.types[matrix.name]].append(matrix)
        roles = list(dict.fromkeys(matrix.role for matrix in self.matrices))
        rows = [self._row(role, kind, group) for (role, kind), group in groups.items()]
        return sorted(rows, key=lambda row: (roles.index(row.role), -row.nbytes / row.count))

    def record(self) -> dict[str, Any]:
        """For the lineage."""
        return {
            "max_size": self.label,
            "max_bytes": self.max_bytes,
            "data": dict(self.data),
            "predicted_kl": _rounded(self.predicted_kl),
            "measured_kl": _rounded(self.measured_kl),
            "base_grid": None if self.grid is None else self.grid.record(),
        }

    def document(self) -> dict[str, Any]:
        """For --json: the record, and the choice itself."""
        return self.record() | {
            "file_bytes": self.file_bytes,
            "groups": [row.record() for row in self.rows()],
            "types": {name: kind.name for name, kind in self.types.items()},
        }

    def table(self) -> str:
        """For people: a line for each role and type, and the sums."""
        lines = [("tensors", "type", "count", "MiB", "predicted KL")]
        for row in self.rows():
            lines.append(
                (row.role, row.kind.name, str(row.count), f"{row.nbytes / 2**20:.2f}",
                 _figure(row.predicted_kl))
            )  # fmt: skip
        sums = f"{self.matrix_bytes / 2**20:.2f}"
        lines.append(("all", "", str(len(self.matrices)), sums, _figure(self.predicted_kl)))
        text = "\n".join(f"{a:<14}{b:<8}{c:>5}{d:>9}{e:>14}" for a, b, c, d, e in lines)
        left = self.max_bytes - self.file_bytes
        if self.sensitivity is not None and self.sensitivity.pulls:
            text += "\nthe sum also counts what is lost of the adapter, by all matrices together"
        text += f"\nfile: {self.file_bytes:,} bytes, {left:,} below the limit of {self.label}"
        if self.measured_kl is not None:
            text += (
                f"\nmeasured KL of the whole on the calibration text, in torch: "
                f"{self.measured_kl:.4f}"
            )
        return text

    def _row(self, role: str, kind: GGMLQuantizationType, group: list[Matrix]) -> Row:
        predicted = None
        if self.sensitivity is not None:
            predicted = sum(self.sensitivity.prices[m.name][kind].kl for m in group)
        return Row(role, kind, len(group), sum(m.nbytes(kind) for m in group), predicted)

    def _patterns(self) -> Iterator[tuple[str, GGMLQuantizationType]]:
        """As --tensor-type takes them: one regular expression for the layers that are alike."""
        groups: dict[tuple[str, str, GGMLQuantizationType], list[int]] = defaultdict(list)
        for matrix in self.matrices:
            kind = self.types[matrix.name]
            if matrix.layer is None:
                yield f"^{re.escape(matrix.name)}$", kind
            else:
                rest = matrix.name.split(".", 2)[2]
                groups[matrix.role, rest, kind].append(matrix.layer)
        for (_, rest, kind), layers in groups.items():
            numbers = "|".join(map(str, layers))
            yield rf"^blk\.({numbers})\.{re.escape(rest)}$", kind


def _figure(kl: float | None) -> str:
    return "" if kl is None else f"{kl:.5f}"


def _rounded(value: float | None) -> float | None:
    """Never longer, as JSON, than `LONGEST`."""
    return None if value is None else round(value, 6 if value < 1 else 2)
