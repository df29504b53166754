"""The models that an artifact is compared with, as torch runs them.

- `base`: the plain base in float32.
- `merged`: the float32 model with the adapter merged in, which is what an artifact means to be.
- `live`: the adapter over the base as it was held in training, in NF4 for QLoRA.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from edgeadapt.adapters import AdapterChoice, AdapterGiven, parse_adapters, read_spec
from edgeadapt.adapters.bottleneck import PEFT_TYPE as BOTTLENECK
from edgeadapt.adapters.held import HELD_AS
from edgeadapt.adapters.sequential import FORMS
from edgeadapt.adapters.spec import PROMPT_METHODS, adapter_identity
from edgeadapt.adapters.vocabulary import folder_with_texts
from edgeadapt.base_model import base_hash
from edgeadapt.errors import InputError
from edgeadapt.export import MergeBase, open_model
from edgeadapt.extras import need

State = Literal["base", "merged", "live"]

_TOOLS = ("torch", "transformers", "peft", "bitsandbytes")


@dataclass(frozen=True)
class ReferenceModel:
    """One of the models to compare with."""

    state: State
    base: Path
    """A Hugging Face folder."""
    adapters: tuple[AdapterChoice, ...] = ()
    """PEFT adapter folders; none for the base, and for a model that was trained whole."""
    held_as: str = "float32"
    """How training held the base: nf4, nf4-double, ..., bfloat16, float16, float32."""
    onto: MergeBase = "original"
    """What the merged model is merged onto."""

    def identity(self) -> dict[str, Any]:
        """Everything that determines its logits, JSON-serializable."""
        held = self.state == "live" or self.onto == "quantized"
        return {
            "state": "live" if self.state == "live" else "float32",
            "base": base_hash(self.base),
            "adapters": [[adapter_identity(one.path), one.weight] for one in self.adapters],
            "held_as": self.held_as if held else "float32",
            "held": [read_spec(one.path).record.get("held") for one in self.adapters if held],
            "versions": {name: _version(name) for name in _TOOLS},
        }

    def record(self) -> dict[str, Any]:
        """As JSON, to be read by `from_record` in another process."""
        adapters = [[str(one.path), one.weight] for one in self.adapters]
        return asdict(self) | {"base": str(self.base), "adapters": adapters}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> ReferenceModel:
        """What `record` wrote."""
        adapters = tuple(AdapterChoice(Path(path), weight) for path, weight in record["adapters"])
        return cls(**record | {"base": Path(record["base"]), "adapters": adapters})


def reference_models(
    base: Path,
    adapters: Sequence[AdapterGiven] = (),
    *,
    trained: Path | None = None,
    onto: MergeBase = "original",
    trained_on: str | None = None,
) -> dict[State, ReferenceModel]:
    """The models that there are: the base alone, with adapters the merged one too, and with a
    single one, without a weight, the live one that was trained.

    Args:
        base: a Hugging Face folder.
        adapters: PEFT adapter folders, as `parse_adapters` takes them.
        trained: a model that was trained whole from the base, in an adapter's place; it takes the
            place of the merged one.
        onto: what the artifacts' adapter is merged onto.
        trained_on: how training held the base, where the adapter's record does not say.

    Raises:
        InputError: the adapter's folder is no adapter.
    """
    plain = ReferenceModel("base", base)
    if trained is not None:
        return {"base": plain, "merged": ReferenceModel("merged", trained)}
    choices = parse_adapters(adapters)
    if not choices:
        return {"base": plain}
    live = live_model(base, choices[0].path, trained_on)
    if read_spec(choices[0].path).peft_type in PROMPT_METHODS:  # nothing to merge
        return {"base": plain, "merged": live}
    merged = replace(live, state="merged", onto=onto, adapters=choices)
    if len(choices) > 1 or choices[0].weight is not None:  # these were not trained together
        return {"base": plain, "merged": merged}
    return {"base": plain, "merged": merged, "live": live}


def live_model(base: Path, adapter: Path, trained_on: str | None = None) -> ReferenceModel:
    """The adapter over its base as training held it.

    Args:
        base: a Hugging Face folder.
        adapter: a PEFT adapter folder.
        trained_on: how the base was held, where the adapter's record does not say.
    """
    recorded = read_spec(adapter).record.get("quantization")
    stated = None if trained_on == "none" else trained_on
    choice = AdapterChoice(adapter)
    return ReferenceModel("live", base, (choice,), str(recorded or stated or "float32"))


def texts_folder(models: Mapping[State, ReferenceModel]) -> Path:
    """The folder of tokenizer and chat template that ship with the artifacts of these models.

    Raises:
        AdapterError: two adapters come with different ones.
    """
    whole = models.get("merged", models["base"])
    return folder_with_texts(whole.base, [choice.path for choice in whole.adapters])


def load(model: ReferenceModel) -> Any:
    """The model as a transformers module in eval mode.

    Raises:
        InputError: the adapter does not belong to the base.
        UnsupportedError: transformers does not know the architecture.
        MissingExtraError: a library is missing.
    """
    from edgeadapt.calibration.activations import load_model

    if model.state == "live":
        return _load_live(model)
    # Whether the adapter belongs to the base was decided when the artifact was made.
    stated = model.held_as if model.onto == "quantized" else None
    opened = open_model(
        str(model.base), model.adapters, any_base=True, merge_onto=model.onto, trained_on=stated
    )
    return load_model(opened.source)


def _load_live(model: ReferenceModel) -> Any:
    from edgeadapt.training.quantization import (
        Nf4Settings,
        bitsandbytes_config,
        detect_nf4_settings,
        guard_linear4bit,
    )

    torch = need("torch", "running an adapter unmerged")
    transformers = need("transformers", "running an adapter unmerged")
    peft = need("peft", "running an adapter unmerged")
    options: dict[str, Any] = {"dtype": torch.float32, "local_files_only": True}
    kind, _, double = model.held_as.partition("-")
    if model.held_as in HELD_AS:
        here = detect_nf4_settings()
        settings = Nf4Settings(here.compute_dtype, bool(double), "as it was trained")
        options["quantization_config"] = bitsandbytes_config(settings, kind)
    elif model.held_as in ("bfloat16", "float16"):
        options["dtype"] = getattr(torch, model.held_as)
    elif model.held_as != "float32":
        raise InputError(
            f"the adapter says that its base was held as {model.held_as!r} in training; edgeadapt "
            f"knows {', '.join(HELD_AS)}, bfloat16, float16 and float32"
        )
    base = transformers.AutoModelForCausalLM.from_pretrained(model.base, **options)
    if "quantization_config" in options:
        guard_linear4bit(base)  # its kernel for inference rounds otherwise than training did
    adapter = model.adapters[0].path
    kind = read_spec(adapter).peft_type
    if kind == BOTTLENECK:
        from edgeadapt.training import bottleneck

        return bottleneck.load(base, model.base, adapter)
    if kind in FORMS:
        from edgeadapt.training import sequential

        return sequential.load(base, model.base, adapter)
    return peft.PeftModel.from_pretrained(base, adapter, local_files_only=True).eval()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
