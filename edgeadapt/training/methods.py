"""The training methods, as a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgeadapt.adapters.bottleneck import PEFT_TYPE, WiderSource, filling_width
from edgeadapt.adapters.sequential import FORMS, WithBottlenecks
from edgeadapt.errors import UnsupportedError
from edgeadapt.training.settings import TrainSettings
from edgeadapt.weights import WeightSource


@dataclass(frozen=True)
class Method:
    """One way to train."""

    summary: str
    nf4_base: bool
    """Whether the base is held in NF4 while training."""
    learning_rate: float
    """Default, for Adam."""
    peft_config: Callable[[TrainSettings], Any] | None
    """Makes the PEFT config; none where the model itself is trained, or our own modules in it."""
    inserted: str | None = None
    """Which modules of ours are trained in the model, by the `peft_type` of their adapters."""
    multiplies_only: bool = True
    """Whether training takes products with the base's weights, and reads them for nothing else."""

    unshardable: str = ""
    """Why processes cannot hold shares of the model (FSDP2), where they cannot."""

    @property
    def frozen_base(self) -> bool:
        """Whether the base's own weights stay as they are."""
        return self.inserted is not None or self.peft_config is not None


def _lora(**extra: Any) -> Callable[[TrainSettings], Any]:
    def make(settings: TrainSettings) -> Any:
        import peft

        return peft.LoraConfig(
            r=settings.r,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=_targets(settings),
            task_type="CAUSAL_LM",
            **extra,
        )

    return make


def _ia3(settings: TrainSettings) -> Any:
    import peft

    if settings.target_modules == "all-linear":  # the paper's three places, which PEFT knows
        return peft.IA3Config(task_type="CAUSAL_LM")
    feedforward = [name for name in settings.target_modules if name.endswith(("down_proj", "fc2"))]
    return peft.IA3Config(
        target_modules=_targets(settings), feedforward_modules=feedforward, task_type="CAUSAL_LM"
    )


def _prefix(settings: TrainSettings) -> Any:
    import peft

    return peft.PrefixTuningConfig(
        num_virtual_tokens=settings.virtual_tokens, task_type="CAUSAL_LM"
    )


def _prompt(settings: TrainSettings) -> Any:
    import peft

    return peft.PromptTuningConfig(
        num_virtual_tokens=settings.virtual_tokens, task_type="CAUSAL_LM"
    )


def _targets(settings: TrainSettings) -> str | list[str]:
    targets = settings.target_modules
    return targets if isinstance(targets, str) else list(targets)


def settle_configs(model: Any, base: str) -> None:
    """Make the PEFT configs of a trained model say what it is for, each time in the same bytes.

    Args:
        model: a PEFT model.
        base: what its base is called.
    """
    for config in model.peft_config.values():
        config.base_model_name_or_path = base
        config.inference_mode = True
        # PEFT keeps names in sets, whose order differs from process to process.
        for name, value in vars(config).items():
            if isinstance(value, set):
                setattr(config, name, sorted(value))


_SOFT_PROMPT = "trains a soft prompt, which PEFT cannot read from shares"

METHODS: dict[str, Method] = {
    "qlora": Method(
        "LoRA on a base in NF4 (arXiv 2305.14314)",
        True,
        2e-4,
        _lora(),
        unshardable="holds its base in 4 bits, of which FSDP2 makes no shares",
        multiplies_only=False,
    ),
    "lora": Method("low-rank updates (arXiv 2106.09685)", False, 2e-4, _lora()),
    "dora": Method(
        "LoRA with trained magnitudes (arXiv 2402.09353)",
        False,
        2e-4,
        _lora(use_dora=True),
        multiplies_only=False,
    ),
    "rslora": Method(
        "LoRA scaled by alpha / sqrt(r) (arXiv 2312.03732)", False, 1e-4, _lora(use_rslora=True)
    ),
    "adapter": Method(
        "a gated bottleneck beside each feed-forward block, folded into it at export",
        False,
        2e-3,
        None,
        inserted=PEFT_TYPE,
    ),
    "houlsby": Method(
        "bottlenecks behind attention and feed-forward blocks (arXiv 1902.00751), for ONNX",
        False,
        3e-3,
        None,
        inserted="HOULSBY",
    ),
    "pfeiffer": Method(
        "bottlenecks behind feed-forward blocks (arXiv 2005.00247), for ONNX",
        False,
        3e-3,
        None,
        inserted="PFEIFFER",
    ),
    "ia3": Method("scaled activations (arXiv 2205.05638)", False, 5e-3, _ia3),
    "prefix": Method(
        "a trained KV cache prefix (arXiv 2101.00190)",
        False,
        1e-2,
        _prefix,
        unshardable=_SOFT_PROMPT,
    ),
    "prompt": Method(
        "trained input embeddings (arXiv 2104.08691)",
        False,
        3e-2,
        _prompt,
        unshardable=_SOFT_PROMPT,
    ),
    "full": Method("all weights", False, 5e-5, None, multiplies_only=False),
}


def with_inserted(source: WeightSource, settings: TrainSettings) -> WeightSource:
    """A base in the shape that the training of a method gives it; most give none.

    Raises:
        UnsupportedError: the method cannot be applied to it.
    """
    kind = METHODS[settings.method].inserted
    if kind is None:
        return source
    if kind in FORMS:
        from edgeadapt.converters.onnx.stream.families import unsupported

        if reason := unsupported(source.config):
            raise UnsupportedError(
                f"{settings.method} reaches a device as nodes of an ONNX graph, and {reason}; "
                "train --method adapter or lora"
            )
        return WithBottlenecks(source, kind, settings.width)
    return WiderSource(
        source, settings.width or filling_width(int(source.config["intermediate_size"]))
    )
