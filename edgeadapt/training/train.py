"""Train an adapter, or a whole model, and leave it with the record of how it came about."""

from __future__ import annotations

import contextlib
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeadapt.artifact import MANIFEST, SCHEMA_VERSION
from edgeadapt.data.encode import encode_dataset
from edgeadapt.errors import InputError
from edgeadapt.export import ModelToExport
from edgeadapt.extras import need, need_torch_sharing_cores
from edgeadapt.fidelity.text import held_out_text
from edgeadapt.files import atomic_folder, full_disk_told, write_json
from edgeadapt.safetensors_io import SafetensorsSource
from edgeadapt.tokenizer import ModelTokenizer
from edgeadapt.training.base_weights import packable
from edgeadapt.training.checkpoints import WorkFolder
from edgeadapt.training.methods import METHODS, with_inserted
from edgeadapt.training.quantization import (
    quiet_bitsandbytes,
)
from edgeadapt.training.run import Run
from edgeadapt.training.settings import TrainSettings
from edgeadapt.training.sweep import Watch
from edgeadapt.training.teacher import check_teacher
from edgeadapt.training.world import check_sharing, this_world


@dataclass(frozen=True)
class TrainResult:
    """A finished run."""

    path: Path
    """The adapter folder; for the method `full`, the model folder."""
    record: dict[str, Any]
    """What `edgeadapt.json` in that folder says."""


def train(
    base: Path,
    train_data: Path,
    heldout_data: Path | None,
    settings: TrainSettings,
    out: Path,
    *,
    base_spec: str,
    work: Path | None = None,
    teacher: ModelToExport | None = None,
    on_step: Callable[[], None] | None = None,
    watch: Watch | None = None,
) -> TrainResult:
    """Train on a dataset and write a plain PEFT adapter folder (a model folder for `full`).

    A run that was killed and is called again with the same arguments goes on from its newest
    complete checkpoint, and ends with the same steps over the same examples.

    Where several processes train together (see `world`), each calls this with the same arguments.
    A batch is that of all of them; one of them writes.

    Args:
        base: Hugging Face folder of the base model; read only.
        train_data: see `load_examples`.
        heldout_data: dataset to score before and after; never trained on.
        settings: everything that shapes the result, the seed included.
        out: folder to make; it appears whole or not at all.
        base_spec: what the user calls the base; written into the adapter's config.
        work: folder for checkpoints, kept; by default a hidden sibling of `out`, removed at the
            end.
        teacher: a model whose predictions are learned in place of the data's own answers.
        on_step: called after each optimizer step.
        watch: validation that may end the training early.

    Raises:
        InputError: the teacher reads text as other tokens, the data cannot be used, `out` exists,
            or `work` holds something else.
        UnsupportedError: the method cannot be applied to this model.
        DivergedError: the loss is not a number any more.
        MissingExtraError: a library for training is not installed.
        OSError: the disk is full.
    """
    if out.exists():
        raise InputError(f"{out} exists already; choose another --out, or remove it first")
    tokenizer = ModelTokenizer.from_folder(base)
    if teacher is not None:
        check_teacher(base, teacher.folder)
    with_inserted(SafetensorsSource(base), settings)  # refused here, not after minutes of scoring
    encoded = encode_dataset(train_data, tokenizer, settings.max_tokens, system=settings.system)
    held_out = heldout_data and held_out_text(
        heldout_data, tokenizer, limit=settings.held_out_examples,
        max_tokens=settings.max_tokens, window=settings.max_tokens, system=settings.system,
    )  # fmt: skip
    run = Run(
        base, base_spec, settings, METHODS[settings.method], encoded, held_out or [], teacher,
        on_step,
        watch=None
        if watch is None
        else (watch, encode_dataset(watch.data, tokenizer, settings.max_tokens)),
    )  # fmt: skip
    inputs = run.inputs(train_data, heldout_data)
    need_torch_sharing_cores("training")
    run.world = world = this_world()
    check_sharing(world.size, settings, sharded=world.sharded)
    if world.sharded:
        from edgeadapt.training import sharding

        sharding.give_memory_back()
    else:  # shares are of weights in memory
        run.packable = packable(base, base_spec, settings)
    place = work or out.with_name(f".{out.name}.work")
    begun_before = place.exists()
    if not world.leads:
        world.wait()  # until the folder is there
    folder = WorkFolder(place, inputs)
    if world.leads:
        world.wait()
    try:
        with _quiet_libraries(), full_disk_told(place):
            record = run.execute(folder) | inputs
    except InputError:  # the same input would fail again, unless it once went further
        if not begun_before and world.leads:
            shutil.rmtree(place, ignore_errors=True)
        raise
    if world.leads:
        _publish(folder, record, out)
        if work is None:
            shutil.rmtree(folder.path)
    world.wait()
    return TrainResult(out, record)


def _publish(folder: WorkFolder, record: dict[str, Any], out: Path) -> None:
    finished = folder.path / "result"
    write_json(finished / MANIFEST, {"kind": "training", "schema_version": SCHEMA_VERSION} | record)
    with atomic_folder(out) as partial:
        for path in finished.iterdir():
            shutil.move(path, partial / path.name)  # the work folder may be on another disk


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Only our own progress and log lines while the libraries work."""
    quiet_bitsandbytes()
    transformers = need("transformers", "training")
    datasets = need("datasets", "training")
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), datasets.are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # between the libraries, about each other
            yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()
        if not bars:
            datasets.enable_progress_bars()
