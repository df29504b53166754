"""TRL's trainer, with our tokens in, our progress out, and checkpoints that are whole or ignored.

Imports torch, transformers and trl; import it only to train.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
import trl
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from edgeadapt.console import Advance
from edgeadapt.data.encode import Encoded
from edgeadapt.training import inserted, sharding
from edgeadapt.training.callbacks import Follow, Validate
from edgeadapt.training.checkpoints import WorkFolder
from edgeadapt.training.packing import pack
from edgeadapt.training.score import only_predicting, predicting
from edgeadapt.training.settings import TrainSettings
from edgeadapt.training.sweep import Watch
from edgeadapt.training.world import ALONE, TIMEOUT, World

_NOT_SCORED = -100


class Trainer(trl.SFTTrainer):  # type: ignore[misc]  # trl has no types
    """SFTTrainer that notes the examples of each step."""

    def __init__(
        self, *, work: WorkFolder, world: World, teacher: Any | None = None, **arguments: Any
    ) -> None:
        self._work = work
        self._world = world
        self._teacher = teacher
        self._plugin = sharding.plugin() if world.sharded else None
        super().__init__(**arguments)
        self.remove_callback(transformers.trainer_callback.PrinterCallback)

    def _build_accelerator_args(self, **options: Any) -> dict[str, Any]:
        built: dict[str, Any] = super()._build_accelerator_args(**options)
        return built if self._plugin is None else built | {"fsdp_plugin": self._plugin}

    def create_accelerator_and_postprocess(self) -> None:
        """Have accelerate shard the model, and transformers save and load as if it were whole."""
        super().create_accelerator_and_postprocess()
        if self._plugin is not None:
            sharding.shard_on_cpus(self.accelerator, self._plugin)
            self.is_fsdp_enabled = False  # of transformers' Trainer, for its kind of checkpoints

    def create_optimizer(self, model: Any = None) -> Any:
        """As the settings say."""
        optimizer = super().create_optimizer(model)
        if self._plugin is not None:
            sharding.gather_optimizer_state(optimizer, keep=self._world.leads)
        return optimizer

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """One forward and backward pass."""
        examples = inputs.pop("example")
        if self._world.leads:
            self._work.note_examples(self.state.global_step + 1, examples.tolist())
        return super().training_step(model, inputs, *args, **kwargs)

    def get_train_dataloader(self) -> Any:
        """Whole batches in every process: the collator takes its share of each.

        Left to itself accelerate fills up an epoch's last batch with examples from its beginning,
        and so trains several processes on other batches than one.
        """
        loader = super().get_train_dataloader()
        if self._world.size > 1:
            sampler = loader.batch_sampler
            sampler.num_processes, sampler.process_index, sampler.even_batches = 1, 0, False
        return loader

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Mean over the scored tokens, in nats: their negative log-likelihood, or the divergence
        D(teacher || model) of what is predicted there.

        TRL's own puts every position through the output layer, and takes entropies of all.
        """
        labels = inputs["labels"]
        scored = labels != _NOT_SCORED
        with only_predicting(self.accelerator.unwrap_model(model)), predicting(scored):
            outputs = model(**_read(inputs))
        logits = outputs.logits[0].float()
        if self._teacher is None:
            losses = torch.nn.functional.cross_entropy(logits, labels[scored], reduction="sum")
        else:
            losses = _divergence(self._teacher, logits, inputs, scored)
        if num_items_in_batch is None:
            loss = losses / scored.sum()
        else:  # counted over all processes, whose gradients DDP then takes the mean of
            loss = losses * self._world.size / num_items_in_batch
        return (loss, outputs) if return_outputs else loss

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write what is trained; every process gives its share, and one writes."""
        state = sharding.gathered(self.model, keep=self._world.leads)
        if self._world.leads:
            self._save(output_dir, state)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Of our modules in a frozen model only these, and not the model beside them."""
        if not inserted.has_inserted(self.model):
            super()._save(output_dir, state_dict)
        else:
            folder = Path(output_dir or self.args.output_dir)
            inserted.save(self.model, folder, base="", tensors=state_dict)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self._plugin is not None and not self._world.leads:
            self.optimizer.state_dict()  # gives its share to the one that writes
        super()._save_optimizer_and_scheduler(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if inserted.has_inserted(self.model):
            inserted.restore(self.model, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write none: a checkpoint is not for publication."""

    def restore(self, checkpoint: Path) -> None:
        """Take the weights and the history of a checkpoint, without training on."""
        self._load_from_checkpoint(str(checkpoint))
        self.state = transformers.TrainerState.load_from_json(
            str(checkpoint / "trainer_state.json")
        )


def _read(inputs: Any) -> dict[str, Any]:
    """What a model is given: padded examples, or packed ones.

    Without a mask of its own transformers lets tokens attend within a run of rising positions.
    """
    how = "position_ids" if "position_ids" in inputs else "attention_mask"
    return {"input_ids": inputs["input_ids"], how: inputs[how], "use_cache": False}


def _divergence(teacher: Any, logits: Any, inputs: Any, scored: Any) -> Any:
    """D(teacher || model), summed over the scored tokens.

    A vocabulary that one of the two pads is cut to the other's.
    """
    with torch.no_grad(), only_predicting(teacher), predicting(scored):
        taught = teacher(**_read(inputs)).logits[0]
    width = min(logits.shape[1], taught.shape[1])
    return torch.nn.functional.kl_div(
        logits[:, :width].log_softmax(-1), taught[:, :width].float().log_softmax(-1),
        reduction="sum", log_target=True,
    )  # fmt: skip


class _Collator(DataCollatorForLanguageModeling):  # type: ignore[misc]
    """This process's share of a batch with TRL's padding, and the numbers of all its examples."""

    def __init__(self, world: World, **options: Any) -> None:
        super().__init__(**options)
        self._world = world

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        share = examples[self._world.rank :: self._world.size]
        if not share:  # the others wait for its gradients, which are 0
            share = [examples[0] | {"labels": [_NOT_SCORED] * len(examples[0]["labels"])}]
        batch: dict[str, Any] = super().torch_call(share)
        batch["example"] = torch.tensor([n for example in examples for n in example["example"]])
        return batch


def make_trainer(
    model: Any,
    peft_config: Any | None,
    tokenizer: Any,
    encoded: Sequence[Encoded],
    settings: TrainSettings,
    *,
    max_steps: int,
    learning_rate: float,
    work: WorkFolder,
    world: World = ALONE,
    teacher: Any | None = None,
) -> Trainer:
    """Set up a run; the adapter is made here, from the seed."""
    packed = rows_of(encoded, settings)
    rows: dict[str, list[Any]] = {
        "input_ids": [[token for n in row for token in encoded[n].ids] for row in packed],
        "labels": [[label for n in row for label in _labels(encoded[n])] for row in packed],
        "example": packed,
        "seq_lengths": [[len(encoded[n].ids) for n in row] for row in packed],
    }
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    trainer = Trainer(
        work=work,
        world=world,
        teacher=teacher,
        model=model,
        peft_config=peft_config,
        args=_arguments(settings, max_steps, learning_rate, work.path, world),
        train_dataset=datasets.Dataset.from_dict(rows),
        data_collator=_Collator(world, pad_token_id=pad_id, return_position_ids=settings.packing),
        processing_class=tokenizer,
    )
    _undo_bfloat16(trainer)
    return trainer


def rows_of(encoded: Sequence[Encoded], settings: TrainSettings) -> list[list[int]]:
    """The numbers of the examples in each row; one in each unless they are packed."""
    if settings.packing:
        return pack([len(example.ids) for example in encoded], settings.max_tokens)
    return [[number] for number in range(len(encoded))]


def _labels(example: Encoded) -> list[int]:
    return [
        token if counts else _NOT_SCORED
        for token, counts in zip(example.ids, example.scored, strict=True)
    ]


def _undo_bfloat16(trainer: Trainer) -> None:
    """Train in float32 where the rest of the pass is in float32.

    On a quantized base TRL stores the adapter in bfloat16, whatever the computation's type. A CPU
    without AVX512-BF16 emulates its products, three times slower than float32's, and the small
    updates of a low-rank matrix round away.
    """
    if trainer.args.bf16:
        return
    for parameter in trainer.model.parameters():
        if parameter.requires_grad and parameter.dtype == torch.bfloat16:
            parameter.data = parameter.data.float()


def run(
    trainer: Trainer,
    resume: Path | None,
    every_s: float,
    advance: Advance,
    watch: tuple[Watch, Sequence[Encoded]] | None = None,
) -> None:
    """Train from a checkpoint, or from the start."""
    if watch is not None:
        trainer.add_callback(Validate(*watch))
    trainer.add_callback(Follow(trainer._work, trainer._world, every_s, advance))
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)


def _arguments(
    settings: TrainSettings, max_steps: int, learning_rate: float, work: Path, world: World
) -> trl.SFTConfig:
    cuda = torch.cuda.is_available()
    return trl.SFTConfig(
        output_dir=str(work),
        max_steps=max_steps,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        gradient_checkpointing=settings.gradient_checkpointing,
        learning_rate=learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=round(settings.warmup * max_steps),
        seed=settings.seed,
        data_seed=settings.seed,
        max_length=None,  # our examples are cut already
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would show the mean of the other losses instead
        save_strategy="no",  # Follow decides
        save_total_limit=2,  # the newest may be incomplete
        use_cpu=not cuda,
        ddp_find_unused_parameters=False,
        ddp_timeout=round(TIMEOUT.total_seconds()),
        bf16=cuda and torch.cuda.is_bf16_supported(),
        dataloader_pin_memory=cuda,
        # Gradients that wait for others of the step would wait whole, and not as shares.
        accelerator_config={"gradient_accumulation_kwargs": {"sync_each_batch": world.sharded}},
        report_to="none",
        disable_tqdm=True,
    )
