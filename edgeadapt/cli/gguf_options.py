"""Options of `edgeadapt export` that are for GGUF alone, gathered into one `GgufWishes`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeadapt.errors import InputError

if TYPE_CHECKING:
    from edgeadapt.allocation.allocation import Allocation
    from edgeadapt.converters.gguf.options import GgufOptions
    from edgeadapt.export import ModelToExport

_OPTIONS = (
    click.option(
        "--calibrate", metavar="DATA", help="Weigh by importance on this data; see imatrix."
    ),
    click.option(
        "--imatrix",
        type=click.Path(path_type=Path),
        help="Weigh by importance, from a file that imatrix or llama-imatrix wrote.",
    ),
    click.option(
        "--tensor-type",
        "tensor_types",
        multiple=True,
        metavar="PATTERN=TYPE",
        help="Type of the tensors whose llama.cpp name holds this regular expression, "
        "such as ffn_down=Q6_K; the first that matches wins.",
    ),
    click.option(
        "--max-size",
        metavar="SIZE",
        help="Most that the file may take, such as 80MiB: each tensor gets the type that loses "
        "least on the data of --calibrate. In place of --quant, for gguf.",
    ),
    click.option(
        "--split-max-size",
        metavar="SIZE",
        help="Split into files of at most 500M, 2G, ..., for gguf.",
    ),
)


@dataclass(frozen=True)
class GgufWishes:
    """What these options say, unread."""

    calibrate: str | None
    imatrix: Path | None
    tensor_types: tuple[str, ...]
    max_size: str | None
    split_max_size: str | None

    @property
    def any(self) -> bool:
        """Whether one of them was given."""
        return any(vars(self).values())

    def check_max_size(self, format_: str | None, quant: str | None) -> None:
        """See that what --max-size needs is there, and nothing that it decides by itself.

        Raises:
            InputError: it is not so.
        """
        if format_ != "gguf":
            raise InputError(
                "--max-size is for --format gguf, and takes no --device: give its budget"
            )
        if quant or self.imatrix or self.tensor_types:
            raise InputError(
                "--max-size chooses every type by itself, and weighs by --calibrate: leave "
                "--quant, --imatrix and --tensor-type out"
            )
        if self.calibrate is None:
            raise InputError(
                "--max-size measures what each type costs: give --calibrate DATA, what the model "
                "will be used on (a dataset, a .txt file, or `python-docs`)"
            )

    def allocate(self, model: ModelToExport, threads: int | None) -> Allocation:
        """The types that lose least within --max-size.

        Raises:
            InputError: no choice of types is so small, or the data cannot be read.
        """
        from edgeadapt.allocation.allocate import allocate
        from edgeadapt.data.source import resolve_data

        assert self.calibrate is not None and self.max_size is not None
        data = resolve_data(self.calibrate)[0]
        return allocate(model, data, self.max_size, threads=threads, split_max_bytes=self._split())

    def options(self, model: ModelToExport, *, pending: bool) -> GgufOptions:
        """The converter's options.

        Args:
            model: what is exported, for the importance matrix of --calibrate.
            pending: nothing will be written, so that the matrix need not be computed.

        Raises:
            InputError: an option cannot be read, or two do not go together.
        """
        from edgeadapt.converters.gguf.options import GgufOptions, parse_tensor_type

        types = tuple(parse_tensor_type(text) for text in self.tensor_types)
        if self.calibrate is not None and self.imatrix is not None:
            raise InputError("give --calibrate DATA or --imatrix FILE, not both")
        importance = None
        if self.imatrix is not None:
            from edgeadapt.converters.gguf.imatrix import read_imatrix

            importance = read_imatrix(self.imatrix)
        elif self.calibrate is not None:
            from edgeadapt.calibration import cached_imatrix, pending_imatrix
            from edgeadapt.data.source import resolve_data

            data = resolve_data(self.calibrate)[0]
            importance = pending_imatrix(data) if pending else cached_imatrix(model, data)
        return GgufOptions(importance, types, self._split())

    def _split(self) -> int:
        from edgeadapt.converters.gguf.options import parse_size

        return parse_size(self.split_max_size) if self.split_max_size else 0


def gguf_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options; the wrapped function receives `gguf: GgufWishes`."""

    @functools.wraps(function)
    def wrapper(
        *args: Any,
        calibrate: str | None,
        imatrix: Path | None,
        tensor_types: tuple[str, ...],
        max_size: str | None,
        split_max_size: str | None,
        **kwargs: Any,
    ) -> Any:
        gguf = GgufWishes(calibrate, imatrix, tensor_types, max_size, split_max_size)
        return function(*args, gguf=gguf, **kwargs)

    for option in reversed(_OPTIONS):
        wrapper = option(wrapper)
    return wrapper
