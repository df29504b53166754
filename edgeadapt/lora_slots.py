"""Where adapters can be added to an ONNX graph at run time: `lora_slots.json` beside the graph.

For each matrix product that an adapter may change, the graph has two optional inputs, A of shape
(columns, rank) and B of shape (rank, rows), which are empty unless given: the product becomes
x W + (x A) B. Any rank fits, and each product may have its own. An `.onnx_adapter` file holds such
inputs by name, and as its model version a number that stands for the base.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from edgeadapt.errors import AdapterError, CorruptFileError
from edgeadapt.files import read_json, write_json

FILE = "lora_slots.json"
SUFFIX = ".onnx_adapter"
FOLDER = "adapters"
"""Where an export puts the adapters that it was given."""

Shape = tuple[int, ...]


def input_names(product: str) -> tuple[str, str]:
    """Names of A and B for the product of this name."""
    return f"{product}.lora_A.weight", f"{product}.lora_B.weight"


def model_version(base_sha256: str) -> int:
    """The number that an adapter file carries for a base: 31 bits of the base's hash."""
    return int(base_sha256[:8], 16) & 0x7FFFFFFF


@dataclass(frozen=True)
class LoraSlots:
    """What one graph can take."""

    model_version: int
    products: Mapping[str, tuple[int, int]]
    """Columns (inputs) and rows (outputs) of each matrix, by the product's name."""

    @classmethod
    def read(cls, folder: Path) -> LoraSlots:
        """What the graph in a folder can take.

        Raises:
            AdapterError: nothing.
            CorruptFileError: the file says it in no way that is known.
        """
        path = folder / FILE
        if not path.is_file():
            raise AdapterError(
                f"the graph in {folder} takes no adapters; export its base with "
                "--format onnx --adapter-mode separate"
            )
        record = read_json(path)
        try:
            products = {
                str(name): (int(columns), int(rows))
                for name, (columns, rows) in record["products"].items()
            }
            return cls(int(record["model_version"]), products)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptFileError(f"{path} lists no slots: {error!r}; export again") from error

    def write(self, folder: Path) -> None:
        """Write the file into the folder of the graph."""
        write_json(folder / FILE, asdict(self))

    def check(self, adapter: Path, version: int, shapes: Mapping[str, Shape]) -> None:
        """See that an adapter fits this graph.

        Args:
            adapter: the file, for the message.
            version: the number of its base.
            shapes: of its tensors, by name.

        Raises:
            AdapterError: it was made for another base or another graph, or its ranks disagree.
        """
        if version != self.model_version:
            raise AdapterError(
                f"{adapter} was made for another base (number {version}, this graph's is "
                f"{self.model_version}); export it again with --base as the graph's"
            )
        left = dict(shapes)
        for product, (columns, rows) in self.products.items():
            a, b = (left.pop(name, None) for name in input_names(product))
            if a is None and b is None:
                continue
            if a is None or b is None:
                raise AdapterError(f"{adapter} lacks A or B for {product}; export it again")
            if len(a) != 2 or len(b) != 2 or a[0] != columns or b[1] != rows:
                raise AdapterError(
                    f"{adapter} has A {a} and B {b} for {product}, expected ({columns}, rank) and "
                    f"(rank, {rows}): it belongs to another graph"
                )
            if a[1] != b[0]:
                raise AdapterError(
                    f"{adapter} has rank {a[1]} in A and {b[0]} in B for {product}; export it again"
                )
        if left:
            raise AdapterError(
                f"{adapter} changes {min(left)!r}, which this graph takes no adapter for; export "
                "the graph again and give this adapter with --adapter"
            )
