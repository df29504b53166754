"""What torch says of held-out text, kept in the cache by the hash of model and text.

A reference is a folder: `log_probs.npy`, float16, shape (scored tokens, vocabulary), and
`scores.npz` with the float32 figures of each token. Log probabilities and not logits are stored,
because those that matter are near zero, where float16 is fine: rounding changes a divergence by
less than 1e-6 nats.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edgeadapt.console import log, progress
from edgeadapt.data.encode import Encoded
from edgeadapt.errors import ChangedError
from edgeadapt.extras import need_torch_sharing_cores
from edgeadapt.fidelity.metrics import (
    Float16Array,
    IntArray,
    TokenScores,
    exponential,
    log_softmax,
    mean,
    score_rows,
)
from edgeadapt.fidelity.models import ReferenceModel, load
from edgeadapt.files import (
    atomic_folder,
    cache_dir,
    check_disk,
    read_json,
    sha256_json,
    write_json,
)
from edgeadapt.jobs import available_threads
from edgeadapt.worker import Progress, run_job

Name = TypeVar("Name", bound=str)
Item = TypeVar("Item")
Result = TypeVar("Result")

_LOG_PROBS, _SCORES, _RECORD = "log_probs.npy", "scores.npz", "reference.json"
_VERSION = 2
"""Of the files' content; part of the hash."""

MOST_BYTES = 8 << 30
"""Of all references in the cache; 8k tokens of a vocabulary of 49k take 0.8 GB."""
_IN_USE_S = 3600.0
"""What was used so recently is needed together with what was just made."""


@dataclass(frozen=True)
class Reference:
    """A model's log probabilities at the scored tokens of a text."""

    folder: Path
    scores: TokenScores

    @classmethod
    def open(cls, folder: Path) -> Reference:
        """A folder that is finished."""
        with np.load(folder / _SCORES) as scores:
            return cls(folder, TokenScores(scores["nll"], scores["top"]))

    @property
    def base_hash(self) -> str:
        """Of the base that the model stands on."""
        return str(read_json(self.folder / _RECORD)["identity"]["base"])

    @property
    def log_probs(self) -> Float16Array:
        """Memory-mapped, float16, shape (scored tokens, vocabulary)."""
        values: Float16Array = np.load(self.folder / _LOG_PROBS, mmap_mode="r")
        return values


def text_hash(encoded: Sequence[Encoded]) -> str:
    """Hex SHA-256 of held-out text as tokens, and which of them count."""
    return sha256_json([[example.ids, example.scored] for example in encoded])


def sequence_numbers(encoded: Sequence[Encoded]) -> IntArray:
    """Which sequence each scored token belongs to, shape (scored tokens,)."""
    return np.repeat(np.arange(len(encoded)), [example.n_scored for example in encoded])


def targets(encoded: Sequence[Encoded]) -> IntArray:
    """The scored tokens, shape (scored tokens,)."""
    return np.array(
        [i for e in encoded for i, scored in zip(e.ids, e.scored, strict=True) if scored], np.int64
    )


def find_references(
    models: Mapping[Name, ReferenceModel], encoded: Sequence[Encoded], *, threads: int | None = None
) -> dict[Name, Reference]:
    """References from the cache; those that it lacks are computed in one child process.

    Args:
        models: what to run, under any names.
        encoded: held-out text; its scored tokens count.
        threads: of torch; by default the cores that there are.

    Raises:
        InputError: the disk has no room for them, or a model cannot be used.
        RuntimeFailure: the child died or failed.
    """
    cache, text = cache_dir() / "references", text_hash(encoded)
    identities = {
        name: model.identity() | {"text": text, "version": _VERSION}
        for name, model in models.items()
    }
    folders = {name: cache / sha256_json(who)[:24] for name, who in identities.items()}
    missing = {
        folder: _Wanted(models[name], folder, identities[name])
        for name, folder in folders.items()
        if not folder.is_dir()
    }
    if missing:
        _compute(list(missing.values()), encoded, threads or available_threads())
        _prune(cache)
    for folder in folders.values():
        os.utime(folder)  # the cache keeps what was used last
    return {name: Reference.open(folder) for name, folder in folders.items()}


def _prune(cache: Path) -> None:
    """Remove what was not used for longest, until the rest keeps to `MOST_BYTES`.

    Another process that has a removed file open goes on reading it.
    """
    kept = 0
    folders = [path for path in cache.iterdir() if (path / _RECORD).is_file()]
    for folder in sorted(folders, key=lambda path: -path.stat().st_mtime):
        kept += sum(file.stat().st_size for file in folder.iterdir())
        if kept > MOST_BYTES and time.time() - folder.stat().st_mtime > _IN_USE_S:
            shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class _Wanted:
    """A reference that the cache lacks."""

    model: ReferenceModel
    folder: Path
    identity: dict[str, Any]

    @property
    def title(self) -> str:
        onto = " onto the quantized base" if self.model.onto == "quantized" else ""
        return f"{self.model.state} model{onto}"


def _compute(missing: Sequence[_Wanted], encoded: Sequence[Encoded], threads: int) -> None:
    """Fill the folders of references, all or none."""
    title = f"reference of the {' and the '.join(wanted.title for wanted in missing)} (torch)"
    with contextlib.ExitStack() as stack:
        partial = [
            stack.enter_context(atomic_folder(wanted.folder, overwrite=True)) for wanted in missing
        ]
        payload = {
            "runtime": "torch",
            "models": [
                {"model": wanted.model.record(), "out": str(folder)}
                for wanted, folder in zip(missing, partial, strict=True)
            ],
            "sequences": [{"ids": e.ids, "counts": e.scored} for e in encoded],
            "threads": threads,
        }
        with progress(title, len(missing) * len(encoded), "sequences") as advance:
            run_job("reference", payload, on_progress=advance)
        for wanted, folder in zip(missing, partial, strict=True):
            if wanted.identity | wanted.model.identity() != wanted.identity:
                raise ChangedError(
                    f"{wanted.model.base} or its adapter was changed while the {wanted.title} was "
                    "run; type the same command again"
                )
            scores = Reference.open(folder).scores
            perplexity = exponential(mean(scores.nll, sequence_numbers(encoded))).record()
            write_json(folder / _RECORD, {"identity": wanted.identity, "perplexity": perplexity})
            log.info("%s in torch: perplexity %.2f", wanted.title, perplexity["value"])


def run_reference(payload: dict[str, Any], advance: Progress) -> dict[str, Any]:
    """The `reference` job, in the child: fills the folder `out` of each of `models`."""
    torch = need_torch_sharing_cores("computing a reference")
    encoded = [Encoded(sequence["ids"], sequence["counts"]) for sequence in payload["sequences"]]
    for wanted in payload["models"]:
        torch.set_num_threads(payload["threads"])
        model = load(ReferenceModel.from_record(wanted["model"]))
        torch.set_num_threads(1)  # now there are threads of our own
        write_reference(model, encoded, Path(wanted["out"]), advance, threads=payload["threads"])
        del model  # before the next one is loaded
    return {}


def write_reference(
    model: Any, encoded: Sequence[Encoded], folder: Path, advance: Progress, *, threads: int = 1
) -> None:
    """Run a transformers module over text, and store what it says.

    Batches run side by side, each in one thread: half of a small model's time goes into work that
    torch does not share between threads.

    Args:
        model: the module, in eval mode.
        encoded: its scored tokens count.
        folder: where the files go.
        advance: told of finished sequences.
        threads: batches at a time.
    """
    from edgeadapt.training.score import batches, only_predicting

    counts = [example.n_scored for example in encoded]
    starts = np.concatenate([[0], np.cumsum(counts)])
    # Batches hold the longest first; a stable sort tells which example each row belongs to.
    order = iter(sorted(range(len(encoded)), key=lambda i: -len(encoded[i].ids)))
    nll, top = np.empty(starts[-1]), np.empty(starts[-1], np.int64)
    stored: Any = None
    with only_predicting(model):
        for count, log_probs, scores in _side_by_side(
            functools.partial(_run_batch, model), batches(encoded), threads
        ):
            if stored is None:
                shape = (int(starts[-1]), log_probs.shape[1])
                check_disk(folder, 2 * shape[0] * shape[1])
                stored = np.lib.format.open_memmap(folder / _LOG_PROBS, "w+", np.float16, shape)
            members = itertools.islice(order, count)
            rows = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in members])
            stored[rows] = log_probs
            nll[rows], top[rows] = scores.nll, scores.top
            advance(count)
    stored.flush()
    np.savez(folder / _SCORES, nll=nll, top=top)


def _run_batch(model: Any, batch: Sequence[Encoded]) -> tuple[int, Float16Array, TokenScores]:
    """How many sequences, their log probabilities, and what these say of the text."""
    import torch

    from edgeadapt.training.score import batch_logits

    with torch.no_grad():  # each thread has its own
        logits, wanted = batch_logits(model, batch)
    log_probs = log_softmax(logits.cpu().numpy())
    return len(batch), log_probs.astype(np.float16), score_rows(log_probs, wanted.cpu().numpy())


def _side_by_side(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> Iterator[Result]:
    """Results in order; no more are begun than `threads` ahead of what was taken."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: collections.deque[Future[Result]] = collections.deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
