"""From a model and text to an importance matrix, in a file or in the cache."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from edgeadapt import __version__
from edgeadapt.calibration.text import CHUNK_TOKENS, token_chunks
from edgeadapt.console import log
from edgeadapt.converters.gguf.architectures import family_of
from edgeadapt.converters.gguf.imatrix import Imatrix, read_imatrix, write_imatrix
from edgeadapt.converters.gguf.mixes import is_matrix
from edgeadapt.data.load import data_hash
from edgeadapt.errors import InputError
from edgeadapt.files import cache_dir, sha256_json
from edgeadapt.tokenizer import ModelTokenizer
from edgeadapt.watched import Watched
from edgeadapt.weights import WeightSource

if TYPE_CHECKING:
    from edgeadapt.export import ModelToExport

CHUNKS = 100
"""Most chunks by default: some 50,000 tokens, after which importance hardly changes."""


def make_imatrix(
    model: ModelToExport,
    data: Path,
    out: Path,
    *,
    chunks: int = CHUNKS,
    name: str | None = None,
    inputs: Watched | None = None,
) -> Imatrix:
    """Run the merged model over text, and write an importance matrix to `out`.

    Args:
        model: base and adapter; the whole model is held in memory in float32.
        data: a dataset, or a .txt file.
        out: a GGUF file that does not exist yet.
        chunks: most chunks of 512 tokens, evenly spaced over the data.
        name: what to call the data in the file; its file name if not given.
        inputs: the data as they were when they were hashed.

    Raises:
        InputError: `out` exists, the data cannot be used or were changed meanwhile as the model may
            be, or the architecture is unknown.
    """
    from edgeadapt.calibration.activations import collect, load_model

    if out.exists():
        raise InputError(f"{out} exists already; choose another --out, or remove it first")
    inputs = inputs or Watched([data])
    tokens = token_chunks(data, ModelTokenizer.from_folder(model.folder), chunks)
    names = gguf_names(model.source)
    log.info("calibrating on %d chunks of %s", len(tokens), data.name)
    entries = collect(load_model(model.source), tokens, names)
    imatrix = Imatrix(entries, (name or data.name,), len(tokens), CHUNK_TOKENS, out.name)
    model.inputs.check()
    inputs.check()
    write_imatrix(imatrix, out)
    return imatrix


def cached_imatrix(model: ModelToExport, data: Path, *, chunks: int = CHUNKS) -> Imatrix:
    """An importance matrix of this model on this data, computed once and then read back.

    Raises:
        InputError: as `make_imatrix`.
    """
    inputs = Watched([data])
    lineage = {key: value for key, value in model.lineage.items() if key != "edgeadapt"}
    key = sha256_json([__version__, lineage, data_hash(data), chunks])
    path = cache_dir() / "imatrix" / key[:32] / f"{data.stem}-imatrix.gguf"
    if not path.is_file():
        try:
            make_imatrix(model, data, path, chunks=chunks, inputs=inputs)
        except InputError:
            if not path.is_file():  # else another process finished the same one first
                raise
    return read_imatrix(path)


def pending_imatrix(data: Path) -> Imatrix:
    """Stands for `cached_imatrix` where only sizes are asked for.

    Raises:
        InputError: nothing is there.
    """
    if not data.exists():
        raise InputError(f"the dataset {data} does not exist")
    name = f"{data.stem}-imatrix.gguf"
    return Imatrix({}, (data.name,), 1, CHUNK_TOKENS, name, sha256="0" * 64, pending=True)


def gguf_names(source: WeightSource) -> dict[str, list[str]]:
    """Checkpoint name of each matrix -> the GGUF tensors that it goes into.

    The columns of a matrix are the same in both: families reorder rows only.
    """
    names: dict[str, list[str]] = defaultdict(list)
    for plan in family_of(source.config).plan(source):
        if plan.name.startswith("blk.") and is_matrix(plan.name, plan.shape):
            for part in plan.parts:
                names[part.name].append(plan.name)
    return dict(names)
