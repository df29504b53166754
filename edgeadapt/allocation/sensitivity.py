"""What rounding costs each matrix of a model, measured once and then kept in the cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gguf.constants import GGMLQuantizationType

from edgeadapt import __version__
from edgeadapt.adapters.merged import MergedSource
from edgeadapt.adapters.via_peft import PeftMergedSource
from edgeadapt.allocation.fisher import Fisher, Float64Array, measure_fisher
from edgeadapt.allocation.matrices import CANDIDATES, Matrix
from edgeadapt.allocation.prices import Price, Weights, price_all
from edgeadapt.allocation.torch_weights import Place, find_places
from edgeadapt.calibration import cached_imatrix
from edgeadapt.calibration.text import token_chunks
from edgeadapt.console import progress
from edgeadapt.converters.gguf.imatrix import Entry, Imatrix
from edgeadapt.data.load import data_hash
from edgeadapt.files import cache_dir, read_json, sha256_json, write_json
from edgeadapt.tokenizer import ModelTokenizer
from edgeadapt.watched import Watched
from edgeadapt.weights import WeightSource

if TYPE_CHECKING:
    from edgeadapt.export import ModelToExport

CHUNKS = 20
CHUNK_TOKENS = 128
"""Text for the gradients: short chunks, as each is one draw."""
IMATRIX_CHUNKS = 16
"""Of 512 tokens, for the importance matrix, which needs no gradients."""
_LEAST = 1e-3
"""Of the mean: the least importance of a column, however little the text used it."""


@dataclass(frozen=True)
class Sensitivity:
    """All that is known about each matrix, by llama.cpp's name."""

    prices: Mapping[str, Mapping[GGMLQuantizationType, Price]]
    pulls: Mapping[str, Float64Array]
    """What losing the adapter's change does; see `Fisher.pulls`. Only matrices that it changes."""
    importance: Imatrix
    """What the quantizers weigh columns by; the embedding and the head among them."""

    def loss(self, types: Mapping[str, GGMLQuantizationType]) -> float:
        """Mean KL divergence, in nats, that is predicted for a choice of types."""
        prices = {name: self.prices[name][kind] for name, kind in types.items()}
        independent = sum(price.kl for price in prices.values())
        pull = sum((1 - prices[name].kept) * self.pulls[name] for name in self.pulls)
        return float(independent + np.square(pull).sum() / 2)


def measured_sensitivity(
    model: ModelToExport, matrices: Sequence[Matrix], data: Path, loaded: Any, threads: int
) -> Sensitivity:
    """Measure, or read what was measured before with the same model and data.

    Args:
        model: base and adapter.
        matrices: its matrices.
        data: a dataset, or a .txt file.
        loaded: function that gives the model as a transformers module in float32.
        threads: for the quantizers.

    Raises:
        InputError: the data cannot be used, or were changed meanwhile, as the model may be.
        UnsupportedError: transformers does not know the model.
        MissingExtraError: torch or transformers are not installed.
    """
    inputs = Watched([data])
    lineage = {key: value for key, value in model.lineage.items() if key != "edgeadapt"}
    how = [CHUNKS, CHUNK_TOKENS, IMATRIX_CHUNKS, [kind.name for kind in CANDIDATES]]
    key = sha256_json([__version__, lineage, data_hash(data), how])
    path = cache_dir() / "sensitivity" / f"{key[:32]}.json"
    imatrix = cached_imatrix(model, data, chunks=IMATRIX_CHUNKS)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        found = _measure(model, matrices, data, loaded(), imatrix, threads)
        model.inputs.check()
        inputs.check()
        write_json(path, found)
    return _read(read_json(path), imatrix)


def original_of(source: WeightSource) -> tuple[WeightSource, frozenset[str]]:
    """The weights before any adapter, and the tensors that are not as they were.

    A tensor that an adapter brought along, or resized, has nothing to be compared with.
    """
    shapes = {name: info.shape for name, info in source.tensors().items()}
    changed: frozenset[str] = frozenset()
    while isinstance(source, MergedSource | PeftMergedSource):
        changed |= source.changed
        source = source.base
    before = {name: info.shape for name, info in source.tensors().items()}
    return source, frozenset(n for n in changed if n in before and before[n] == shapes.get(n))


def _measure(
    model: ModelToExport,
    matrices: Sequence[Matrix],
    data: Path,
    loaded: Any,
    imatrix: Imatrix,
    threads: int,
) -> dict[str, Any]:
    base, changed = original_of(model.source)
    tokenizer = ModelTokenizer.from_folder(model.folder)
    chunks = token_chunks(data, tokenizer, CHUNKS, CHUNK_TOKENS)
    places = find_places(loaded, matrices)
    with progress("measuring what each weight matters", len(chunks), "chunks") as advance:
        fisher = measure_fisher(loaded, places, chunks, base, changed, advance)
    columns = _columns(matrices, places, fisher, imatrix)
    with progress("rounding a sample of each matrix", len(matrices), "matrices") as advance:
        prices = price_all(
            matrices,
            Weights(model.source, base, changed),
            places,
            fisher.diagonals,
            _with_columns(imatrix, columns),
            threads,
            advance,
        )
    return {
        "prices": {
            name: {kind.name: [price.kl, price.kept] for kind, price in priced.items()}
            for name, priced in prices.items()
        },
        "pulls": {name: list(pull) for name, pull in _pulls(matrices, fisher).items()},
        "columns": columns,
    }


def _pulls(matrices: Sequence[Matrix], fisher: Fisher) -> dict[str, Float64Array]:
    pulls = {
        matrix.name: [fisher.pulls[p.name] for p in matrix.plan.parts if p.name in fisher.pulls]
        for matrix in matrices
    }
    return {name: np.sum(parts, axis=0) for name, parts in pulls.items() if parts}


def _columns(
    matrices: Sequence[Matrix], places: Mapping[str, Place], fisher: Fisher, imatrix: Imatrix
) -> dict[str, list[float]]:
    """Importance by gradients where there is none by activations: of the embedding and the head."""
    found = {}
    for matrix in matrices:
        if matrix.name in imatrix.entries or len(matrix.plan.shape) != 2:
            continue
        place = places[matrix.plan.parts[0].name]
        values = fisher.diagonals[place.parameter].columns[place.expert or 0]
        if values.any():
            found[matrix.name] = list(np.maximum(values, _LEAST * values.mean()) / values.mean())
    return found


def _with_columns(imatrix: Imatrix, columns: Mapping[str, Sequence[float]]) -> Imatrix:
    entries = {
        name: Entry(np.array([values], np.float32), np.ones(1, np.float32))
        for name, values in columns.items()
    }
    return replace(imatrix, entries={**imatrix.entries, **entries})


def _read(record: Mapping[str, Any], imatrix: Imatrix) -> Sensitivity:
    return Sensitivity(
        prices={
            name: {GGMLQuantizationType[kind]: Price(*price) for kind, price in priced.items()}
            for name, priced in record["prices"].items()
        },
        pulls={name: np.array(pull) for name, pull in record["pulls"].items()},
        importance=_with_columns(imatrix, record["columns"]),
    )
