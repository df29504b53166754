"""Train an adapter, or a whole model, and leave it with the record of how it came about."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

from edgeadapt import __version__
from edgeadapt.adapters.bottleneck import PEFT_TYPE
from edgeadapt.artifact import MANIFEST, SCHEMA_VERSION
from edgeadapt.console import log, progress
from edgeadapt.data.encode import Encoded, encode_dataset
from edgeadapt.data.load import data_hash
from edgeadapt.errors import InputError, RuntimeFailure, UnsupportedError
from edgeadapt.export import ModelToExport
from edgeadapt.extras import need, need_torch_sharing_cores
from edgeadapt.fidelity.text import held_out_text
from edgeadapt.files import atomic_folder, full_disk_told, write_json
from edgeadapt.safetensors_io import SafetensorsSource
from edgeadapt.tokenizer import TOKENIZER_FILES, ModelTokenizer
from edgeadapt.training.base_weights import choose_base_weights, packable
from edgeadapt.training.checkpoints import WorkFolder
from edgeadapt.training.methods import METHODS, Method, settle_configs, with_inserted
from edgeadapt.training.quantization import (
    bitsandbytes_config,
    detect_nf4_settings,
    guard_linear4bit,
    quiet_bitsandbytes,
)
from edgeadapt.training.score import Score, score_model
from edgeadapt.training.settings import BaseWeights, OptimizerName, TrainSettings
from edgeadapt.training.sweep import Watch
from edgeadapt.training.teacher import check_teacher, load_teacher, taught_by
from edgeadapt.training.world import ALONE, World, this_world

_LIBRARIES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate")


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
        RuntimeFailure: training diverged.
        MissingExtraError: a library for training is not installed.
        OSError: the disk is full.
    """
    if out.exists():
        raise InputError(f"{out} exists already; choose another --out, or remove it first")
    tokenizer = ModelTokenizer.from_folder(base)
    if teacher is not None:
        check_teacher(base, teacher.folder)
    with_inserted(SafetensorsSource(base), settings)  # refused here, not after minutes of scoring
    packed = packable(base, base_spec, settings)
    encoded = encode_dataset(train_data, tokenizer, settings.max_tokens, system=settings.system)
    held_out = heldout_data and held_out_text(
        heldout_data, tokenizer, limit=settings.held_out_examples,
        max_tokens=settings.max_tokens, window=settings.max_tokens, system=settings.system,
    )  # fmt: skip
    run = _Run(
        base, base_spec, settings, METHODS[settings.method], encoded, held_out or [], teacher,
        on_step,
        watch=None
        if watch is None
        else (watch, encode_dataset(watch.data, tokenizer, settings.max_tokens)),
        packable=packed,
    )  # fmt: skip
    inputs = run.inputs(train_data, heldout_data)
    need_torch_sharing_cores("training")
    run.world = world = this_world()
    if world.size > settings.batch_size:
        raise InputError(
            f"{world.size} processes cannot share a batch of {settings.batch_size}; raise "
            "--batch-size, or start fewer"
        )
    if world.size > 1 and settings.optimizer not in ("auto", "adamw"):
        raise InputError(
            f"the optimizer {settings.optimizer} is for one process; {world.size} processes take "
            "adamw"
        )
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


@dataclass
class _Run:
    base: Path
    base_spec: str
    settings: TrainSettings
    method: Method
    encoded: list[Encoded]
    held_out: list[Encoded]
    teacher: ModelToExport | None = None
    on_step: Callable[[], None] | None = None
    watch: tuple[Watch, list[Encoded]] | None = None
    packable: Path | None = None
    """The GGUF file whose weights may stay packed."""
    world: World = ALONE
    optimizer: OptimizerName = "auto"
    """Settled when the model is there."""

    @property
    def max_steps(self) -> int:
        """Optimizer steps; an epoch's last batch and last step may be smaller."""
        if self.settings.max_steps is not None:
            return self.settings.max_steps
        batches = math.ceil(self.rows / self.settings.batch_size)
        steps = math.ceil(batches / self.settings.gradient_accumulation)
        return max(1, math.ceil(steps * self.settings.epochs))

    @functools.cached_property
    def rows(self) -> int:
        """Rows of tokens that the trainer sees: as many as examples unless they are packed."""
        from edgeadapt.training import loop

        return len(loop.rows_of(self.encoded, self.settings))

    @property
    def learning_rate(self) -> float:
        return self.settings.learning_rate or self.method.learning_rate

    def inputs(self, train_data: Path, heldout_data: Path | None) -> dict[str, Any]:
        """What determines the result: if any of it differs, checkpoints cannot be used."""
        from edgeadapt.base_model import base_hash

        return {
            "base": self.base_spec,
            "base_hash": base_hash(self.base),
            "data_hash": data_hash(train_data),
            "held_out_hash": heldout_data and data_hash(heldout_data),
            "method": self.settings.method,
            "settings": self.settings.model_dump(mode="json"),
        } | ({"teacher": taught_by(self.teacher)} if self.teacher else {})

    def execute(self, work: WorkFolder) -> dict[str, Any]:
        """Score, train, score; leave the adapter or model in `work/result`."""
        need("trl", "training")
        need("peft", "training")
        model, held = self._load(work)
        if self.settings.packing:
            from edgeadapt.training.packing import check_packing

            check_packing(model)  # refused now, and not after minutes of scoring
        config = copy.deepcopy(model.config)  # the trainer changes its token ids
        before = self._score_before(model, work)
        trainer = self._train(model, work)
        after = self._score(trainer.model, "held-out loss, after")
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        if not all(math.isfinite(loss) for loss in losses):
            raise RuntimeFailure(
                "training diverged: the loss is not a number any more; "
                f"lower the learning rate (it was {self.learning_rate:g})"
            )
        if before and after:
            log.info(
                "held-out perplexity: %.2f before, %.2f after", before["perplexity"],
                after["perplexity"],
            )  # fmt: skip
        if self.world.leads:
            self._save(trainer.model, config, work.path / "result")
        return {
            **held,
            "steps": trainer.state.global_step,
            "learning_rate": self.learning_rate,
            "optimizer": self.optimizer,
            "examples": len(self.encoded),
            "rows": self.rows,
            "trained_parameters": _trained_parameters(trainer.model),
            "losses": losses,
            "held_out": {"before": before, "after": after} if before else None,
            "versions": _versions(),
        }

    def _load(self, work: WorkFolder) -> tuple[Any, dict[str, Any]]:
        """The model, and how its base is held: what a merge has to know later."""
        chosen: dict[str, Any] = {}
        if self.packable is not None:
            chosen["base_weights"] = self._settle_base_weights(work)
            if chosen["base_weights"] == "packed":
                return _load_packed(self.base, self.packable), chosen | {"quantization": "float32"}
        torch = need("torch", "training")
        transformers = need("transformers", "training")
        cuda = torch.cuda.is_available()
        options: dict[str, Any] = {
            "dtype": torch.bfloat16 if cuda and self.method.frozen_base else torch.float32,
            "device_map": {"": self.world.local_rank if cuda else "cpu"},
            "local_files_only": True,
        }
        dtype = str(options["dtype"]).removeprefix("torch.")
        held: dict[str, Any] = chosen | {"quantization": dtype}
        if self.method.nf4_base:
            nf4 = detect_nf4_settings()
            log.info(
                "base in NF4, computing in %s, %s double quantization (%s)",
                nf4.compute_dtype, "with" if nf4.double_quantization else "without", nf4.reason,
            )  # fmt: skip
            options["quantization_config"] = bitsandbytes_config(nf4)
            held["quantization"] = "nf4-double" if nf4.double_quantization else "nf4"
        try:
            model = transformers.AutoModelForCausalLM.from_pretrained(self.base, **options)
        except (ValueError, OSError, KeyError, RuntimeError) as error:
            raise UnsupportedError(f"transformers cannot load {self.base}: {error}") from error
        if self.method.nf4_base:
            held["held"] = {"dtype": dtype, "layers": guard_linear4bit(model)}
        return model, held

    def _settle_base_weights(self, work: WorkFolder) -> BaseWeights:
        """One choice for all processes; a run that goes on keeps what it began with."""
        known: BaseWeights | None = None
        if self.world.leads:
            known = work.recall("base_weights") or choose_base_weights(
                self.settings.base_weights, self.base, self.world.size
            )
            work.remember("base_weights", known)
        return cast(BaseWeights, self.world.tell(known))

    def _score(self, model: Any, title: str) -> dict[str, float] | None:
        if not self.held_out or not self.world.leads:
            return None
        score: Score = score_model(model, self.held_out, title=title)
        return score.record()

    def _score_before(self, model: Any, work: WorkFolder) -> dict[str, float] | None:
        known: dict[str, float] | None = work.recall("before")
        if known is None and self.world.leads:
            known = self._score(model, "held-out loss, before")
            work.remember("before", known)
        return known

    def _train(self, model: Any, work: WorkFolder) -> Any:
        transformers = need("transformers", "training")
        from edgeadapt.training import loop

        tokenizer = transformers.AutoTokenizer.from_pretrained(self.base, local_files_only=True)
        make = self.method.peft_config
        if self.method.inserted is not None:
            _insert(model, self.base, self.method.inserted, self.settings)
        try:
            trainer = loop.make_trainer(
                model, make(self.settings) if make else None, tokenizer, self.encoded,
                self.settings, max_steps=self.max_steps, learning_rate=self.learning_rate,
                work=work, teacher=self.teacher and load_teacher(self.teacher, model.device),
                world=self.world,
            )  # fmt: skip
        except ValueError as error:  # what PEFT and TRL raise for models they cannot adapt
            raise UnsupportedError(
                f"method {self.settings.method} cannot be applied to {self.base_spec}: {error}"
            ) from error
        if self.settings.packing:
            log.info("packed %d examples into %d rows", len(self.encoded), self.rows)
        self.optimizer = self._settle_optimizer(trainer, work)
        # Only one of several processes may remove what is incomplete.
        newest = self.world.tell(work.newest_checkpoint() if self.world.leads else None)
        done, checkpoint = newest or (0, None)
        if self.world.leads:
            work.rewind(done)
        if checkpoint is not None:
            log.info("going on from step %d of %d", done, self.max_steps)
        if checkpoint is not None and done >= self.max_steps:
            # TRL would train one step too many here when it is in the middle of an epoch.
            trainer.restore(checkpoint)
            return trainer
        left = self.max_steps - done
        with progress(f"training ({self.settings.method})", left, "steps") as advance:

            def step(amount: float, note: str = "") -> None:
                advance(amount, note=note)
                if self.on_step is not None:
                    self.on_step()

            loop.run(trainer, checkpoint, self.settings.save_every_s, step, self.watch)
        return trainer

    def _settle_optimizer(self, trainer: Any, work: WorkFolder) -> OptimizerName:
        """Set it; a run that goes on keeps what it began with, whatever memory is free now."""
        from edgeadapt.training import optimizer

        if self.world.size > 1:  # the state is theirs together
            optimizer.set_optimizer(trainer, "adamw", work.path)
            return "adamw"
        name: OptimizerName = work.recall("optimizer") or self.settings.optimizer
        if name == "auto":
            need = optimizer.need_of(trainer.model)
            name, why = optimizer.choose(need, optimizer.free_memory(trainer.args.device))
            log.info("optimizer %s: %s", name, why)
        work.remember("optimizer", name)
        optimizer.set_optimizer(trainer, name, work.path)
        return name

    def _save(self, model: Any, config: Any, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self._write(model, config, folder)
        umask = os.umask(0)
        os.umask(umask)
        for path in folder.iterdir():
            path.chmod(0o666 & ~umask)  # safetensors makes files that nobody else may read

    def _write(self, model: Any, config: Any, folder: Path) -> None:
        if self.method.inserted is not None:
            from edgeadapt.training import inserted

            inserted.save(model, folder, base=self.base_spec)
            return
        if self.method.peft_config is None:
            model.config = config
            model.save_pretrained(folder)
            for name in TOKENIZER_FILES:
                if (self.base / name).is_file():
                    shutil.copyfile(self.base / name, folder / name)
            return
        settle_configs(model, self.base_spec)
        # Embeddings are never changed here; left to itself PEFT asks a hub whether they were.
        model.save_pretrained(folder, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # an empty form for a hub


def _insert(model: Any, base: Path, kind: str, settings: TrainSettings) -> None:
    """Freeze a model, and put modules of ours into it to be trained."""
    from edgeadapt.training import bottleneck, sequential

    if kind == PEFT_TYPE:
        bottleneck.attach(model, base, settings.width, settings.seed)
    else:
        sequential.attach(model, base, kind, settings.width, settings.seed)


def _load_packed(folder: Path, gguf: Path) -> Any:
    # these need the gguf package, which training on other bases does without
    from edgeadapt.gguf_split import open_gguf
    from edgeadapt.importers.gguf_file import source_in
    from edgeadapt.training.packed import load_packed

    return load_packed(folder, source_in(open_gguf(gguf)))


def _trained_parameters(model: Any) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _versions() -> dict[str, str]:
    found = {"edgeadapt": __version__}
    for name in _LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


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
