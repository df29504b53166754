"""One training run: score, train, score; from a checkpoint where there is one."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

from edgeadapt import __version__
from edgeadapt.console import log, progress
from edgeadapt.data.encode import Encoded
from edgeadapt.data.load import data_hash
from edgeadapt.errors import DivergedError, UnsupportedError
from edgeadapt.export import ModelToExport
from edgeadapt.extras import need
from edgeadapt.training.base_weights import choose_base_weights
from edgeadapt.training.checkpoints import WorkFolder
from edgeadapt.training.methods import Method
from edgeadapt.training.model import insert, load_model, load_packed_model, write_trained
from edgeadapt.training.score import score_model
from edgeadapt.training.settings import BaseWeights, OptimizerName, TrainSettings
from edgeadapt.training.sweep import Watch
from edgeadapt.training.teacher import load_teacher, taught_by
from edgeadapt.training.world import ALONE, World

_LIBRARIES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate")


@dataclass
class Run:
    """What is trained, on what, and among which processes."""

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
        """The settings', or the method's own."""
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
            raise DivergedError(
                "training diverged: the loss is not a number any more; "
                f"lower the learning rate (it was {self.learning_rate:g})"
            )
        if before and after:
            log.info(
                "held-out perplexity: %.2f before, %.2f after", before["perplexity"],
                after["perplexity"],
            )  # fmt: skip
        self._write(trainer.model, config, work.path / "result")
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
        if self.packable is None:
            return load_model(self.base, self.method, self.world.local_rank)
        weights = self._settle_base_weights(work)
        if weights == "packed":
            model, held = load_packed_model(self.base, self.packable)
        else:
            model, held = load_model(self.base, self.method, self.world.local_rank)
        return model, held | {"base_weights": weights}

    def _settle_base_weights(self, work: WorkFolder) -> BaseWeights:
        """One choice for all processes; a run that goes on keeps what it began with."""
        known: BaseWeights | None = None
        if self.world.leads:
            known = work.recall("base_weights") or choose_base_weights(
                self.settings.base_weights, self.base, self.world.local_size
            )
            work.remember("base_weights", known)
        return cast(BaseWeights, self.world.tell(known))

    def _score(self, model: Any, title: str) -> dict[str, float] | None:
        if not self.held_out:
            return None
        return score_model(model, self.held_out, title=title, world=self.world).record()

    def _score_before(self, model: Any, work: WorkFolder) -> dict[str, float] | None:
        known: dict[str, float] | None = self.world.tell(work.recall("before"))
        if known is None:
            known = self._score(model, "held-out loss, before")
            if self.world.leads:
                work.remember("before", known)
        return known

    def _train(self, model: Any, work: WorkFolder) -> Any:
        transformers = need("transformers", "training")
        from edgeadapt.training import loop

        tokenizer = transformers.AutoTokenizer.from_pretrained(self.base, local_files_only=True)
        make = self.method.peft_config
        if self.method.inserted is not None:
            insert(model, self.base, self.method.inserted, self.settings)
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

    def _write(self, model: Any, config: Any, folder: Path) -> None:
        from edgeadapt.training import sharding

        state = sharding.gathered(model, keep=self.world.leads)
        if self.world.leads:
            write_trained(
                model, folder, method=self.method, base=self.base, base_spec=self.base_spec,
                config=config, state=state,
            )  # fmt: skip


def _trained_parameters(model: Any) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _versions() -> dict[str, str]:
    found = {"edgeadapt": __version__}
    for name in _LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
