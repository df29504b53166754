"""From a model, text and a size to a type for each tensor."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gguf.constants import GGMLQuantizationType

from edgeadapt.allocation.allocation import LONGEST, Allocation
from edgeadapt.allocation.assign import assign
from edgeadapt.allocation.budget import parse_max_size
from edgeadapt.allocation.divergence import Reference
from edgeadapt.allocation.grid import find_grid
from edgeadapt.allocation.matrices import find_matrices
from edgeadapt.allocation.rounding import round_matrices
from edgeadapt.allocation.sensitivity import (
    CHUNK_TOKENS,
    Sensitivity,
    measured_sensitivity,
    original_of,
)
from edgeadapt.allocation.torch_weights import find_places
from edgeadapt.calibration import pending_imatrix
from edgeadapt.calibration.activations import load_model
from edgeadapt.calibration.text import token_chunks
from edgeadapt.console import log, progress
from edgeadapt.converters.gguf.architectures import family_of
from edgeadapt.cpu import usable_cpus
from edgeadapt.data.load import data_hash
from edgeadapt.errors import InputError
from edgeadapt.export import plan_export
from edgeadapt.extras import need
from edgeadapt.tokenizer import ModelTokenizer

if TYPE_CHECKING:
    from edgeadapt.export import ModelToExport

CHECKED = 12
"""Chunks on which the choice is measured."""

T = GGMLQuantizationType


def allocate(
    model: ModelToExport,
    data: Path,
    max_size: str,
    *,
    threads: int | None = None,
    split_max_bytes: int = 0,
) -> Allocation:
    """Choose the types that lose least in a GGUF file, or files, of at most this size.

    Args:
        model: base and adapter; the whole model is held in memory in float32.
        data: what the model will be used on: a dataset, or a .txt file.
        max_size: such as `80MiB`, see `parse_max_size`.
        threads: default all cores.
        split_max_bytes: as `GgufOptions` has it.

    Raises:
        InputError: even the smallest types need more, or the data cannot be used.
        UnsupportedError: llama.cpp or transformers does not know the model.
        MissingExtraError: torch or transformers are not installed.
    """
    threads = threads or usable_cpus()
    draft = _draft(model, data, max_size, split_max_bytes)
    if draft.file_bytes <= draft.max_bytes:
        log.info("all of the model fits as F16, so there is nothing to weigh")
        return draft
    smallest = _smallest(model, draft, data)
    for module in ("torch", "transformers"):
        need(module, "measuring what rounding costs, for --max-size,")
    loaded = functools.cache(lambda: load_model(model.source))
    sensitivity = measured_sensitivity(model, draft.matrices, data, loaded, threads)
    _tell_grid(draft, bool(sensitivity.pulls))
    chosen = _fit(model, smallest, sensitivity)
    measured = _measure(model, chosen, data, loaded(), threads)
    return _sized(model, replace(chosen, measured_kl=measured))


def check_max_size(model: ModelToExport, data: Path, max_size: str) -> None:
    """See that a file of this size is possible, before anything is measured.

    Raises:
        InputError: even the smallest types need more.
        UnsupportedError: llama.cpp does not know the model.
    """
    draft = _draft(model, data, max_size)
    if draft.file_bytes > draft.max_bytes:
        _smallest(model, draft, data)


def _draft(model: ModelToExport, data: Path, max_size: str, split_max_bytes: int = 0) -> Allocation:
    """All matrices as F16."""
    matrices = find_matrices(family_of(model.source.config).plan(model.source))
    draft = Allocation(
        label="".join(max_size.split()),
        max_bytes=parse_max_size(max_size),
        file_bytes=0,
        matrices=tuple(matrices),
        types={matrix.name: T.F16 for matrix in matrices},
        data={"name": data.name, "sha256": data_hash(data)},
        grid=find_grid(original_of(model.source)[0], matrices),
        split_max_bytes=split_max_bytes,
    )
    return _sized(model, draft)


def _smallest(model: ModelToExport, draft: Allocation, data: Path) -> Allocation:
    """The smallest file there can be, with all that its header will say.

    Raises:
        InputError: it is larger than the limit.
    """
    types = {m.name: min(m.types, key=lambda kind: (m.nbytes(kind), kind)) for m in draft.matrices}
    smallest = replace(
        draft,
        types=types,
        importance=pending_imatrix(data),
        predicted_kl=LONGEST,
        measured_kl=LONGEST,
    )
    smallest = _sized(model, smallest)
    if smallest.file_bytes > draft.max_bytes:
        raise InputError(
            f"this model does not fit in {draft.label}: the smallest file is "
            f"{smallest.file_bytes:,} bytes ({smallest.file_bytes / 2**20:.2f} MiB); "
            "give a larger --max-size, or a smaller base"
        )
    return smallest


def _fit(model: ModelToExport, smallest: Allocation, sensitivity: Sensitivity) -> Allocation:
    """The best choice whose file, header and all, is within the limit."""
    room = smallest.max_bytes - smallest.file_bytes + smallest.matrix_bytes
    with progress("choosing types", 1) as advance:
        while True:
            types = assign(smallest.matrices, sensitivity, room) or smallest.types
            chosen = replace(
                smallest,
                types=types,
                importance=sensitivity.importance,
                sensitivity=sensitivity,
                predicted_kl=sensitivity.loss(types),
            )
            chosen = _sized(model, chosen)
            if chosen.file_bytes <= chosen.max_bytes or types == smallest.types:
                advance(1)
                return chosen
            room -= chosen.file_bytes - chosen.max_bytes  # the header grows with the choice


def _measure(
    model: ModelToExport, chosen: Allocation, data: Path, loaded: Any, threads: int
) -> float:
    """Mean KL divergence on some of the calibration text, all matrices rounded as chosen."""
    tokenizer = ModelTokenizer.from_folder(model.folder)
    chunks = token_chunks(data, tokenizer, CHECKED, CHUNK_TOKENS)
    with progress("measuring the choice", 3) as advance:
        reference = Reference(loaded, chunks)
        advance(1)
        assert chosen.importance is not None
        places = find_places(loaded, chosen.matrices)
        round_matrices(
            loaded, model.source, places, chosen.types, chosen.matrices, chosen.importance, threads
        )
        advance(1)
        return float(reference.divergence().mean())


def _tell_grid(allocation: Allocation, adapted: bool) -> None:
    if allocation.grid is None:
        return
    log.warning(
        "%s; %s",
        allocation.grid,
        "types that would set weights back there are charged for what they lose of the adapter"
        if adapted
        else "without an adapter, such a type loses nothing",
    )


def _sized(model: ModelToExport, allocation: Allocation) -> Allocation:
    """With the size of all files that its export makes."""
    out, options = Path("model.gguf"), allocation.options()
    plan = plan_export(model, "gguf", allocation.mix, out, options=options)
    return replace(allocation, file_bytes=plan.output)
