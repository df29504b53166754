"""What a PEFT adapter folder says about itself."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from edgeadapt.base_model import file_sha256
from edgeadapt.errors import AdapterError, CorruptFileError, InputError, UnsupportedError
from edgeadapt.files import read_json, sha256_json

Number = TypeVar("Number", int, float)

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

# Initialisations that subtract something from the base weight each time the adapter is loaded.
# The saved tensors alone do not say what; PEFT can convert such an adapter into a plain LoRA.
_BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")
_PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal")

# LoRA variants whose forward pass is not W + scale * B @ A (DoRA, which we know, aside).
_LORA_VARIANT_FIELDS = {
    "use_qalora": "QALoRA",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow routing",
    "layer_replication": "layer replication",
    "use_bdlora": "block-diagonal LoRA",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "target_parameters": "LoRA on bare parameters",
}

PROMPT_METHODS = frozenset(
    {"PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "CPT", "CARTRIDGE"}
)
"""Methods that train inputs or a KV cache and leave no weight to merge."""


@dataclass(frozen=True)
class AdapterSpec:
    """An adapter's method and hyperparameters, from `adapter_config.json`."""

    path: Path
    peft_type: str
    """PEFT's name of the method: LORA, IA3, LOHA, ..."""
    r: int = 0
    alpha: float = 0.0
    use_rslora: bool = False
    use_dora: bool = False
    fan_in_fan_out: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    feedforward_modules: str | tuple[str, ...] = ()
    """IA3: modules whose input is scaled, not their output (a regex, or name endings)."""
    trainable_token_indices: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Module name ending -> rows of it that `trainable_tokens_delta` replaces."""
    base_model: str | None = None
    """What the adapter says it was trained on."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """edgeadapt.json beside the adapter, if edgeadapt trained it: base hash, data hash, ..."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """adapter_config.json as it is."""

    @property
    def method(self) -> str:
        """The method as people call it: lora, rslora, dora, ia3, ..."""
        if self.peft_type != "LORA":
            return self.peft_type.lower()
        return "dora" if self.use_dora else "rslora" if self.use_rslora else "lora"

    def rank_of(self, module: str) -> int:
        """Configured rank of the module with this full name."""
        return int(_pattern_value(self.rank_pattern, module, self.r))

    def alpha_of(self, module: str) -> float:
        """Configured alpha of the module with this full name."""
        return float(_pattern_value(self.alpha_pattern, module, self.alpha))

    def scaling_of(self, module: str, rank: int) -> float:
        """Factor on B @ A: alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv 2312.03732)."""
        alpha = self.alpha_of(module)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def is_feedforward(self, module: str) -> bool:
        """Whether IA3 scales this module's input."""
        if isinstance(self.feedforward_modules, str):
            return re.fullmatch(self.feedforward_modules, module) is not None
        return any(
            module == name or module.endswith(f".{name}") for name in self.feedforward_modules
        )


def _pattern_value(pattern: Mapping[str, Any], module: str, default: Any) -> Any:
    """PEFT's rule for rank and alpha patterns: the first key that matches the name's ending."""
    for key, value in pattern.items():
        try:
            if re.match(rf"(.*\.)?({key})$", module):
                return value
        except re.error as error:
            raise AdapterError(f"the pattern {key!r} is not a regular expression") from error
    return default


def adapter_identity(folder: Path) -> str:
    """Hex SHA-256 of all that shapes a merge: the weights, and the config that scales them.

    Raises:
        InputError: one of the two is missing.
    """
    return sha256_json([file_sha256(folder / WEIGHTS), file_sha256(folder / CONFIG)])


def read_spec(path: Path) -> AdapterSpec:
    """Read an adapter folder's configuration and check that its weights can be used safely.

    Raises:
        InputError: the folder, its config or its safetensors file is missing.
        CorruptFileError: the config is malformed.
        UnsupportedError: the adapter's method cannot be merged.
    """
    spec = describe_spec(path)
    if spec.peft_type == "LORA":
        _check_lora(spec.config)
    return spec


def describe_spec(path: Path) -> AdapterSpec:
    """Read an adapter folder's configuration, whether or not it can be merged.

    Raises:
        InputError: the folder, its config or its safetensors file is missing.
        CorruptFileError: the config is malformed.
    """
    if not (path / CONFIG).is_file():
        hint = "give the folder that PEFT's save_pretrained wrote"
        if not path.exists():
            raise InputError(f"the adapter {path} does not exist; {hint}")
        raise InputError(f"{path} has no {CONFIG}, so it is not an adapter; {hint}")
    config = read_json(path / CONFIG)
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise CorruptFileError(f"{path / CONFIG} names no peft_type, so it is not a PEFT config")
    _check_weights_file(path)
    peft_type = config["peft_type"].upper()
    try:
        return AdapterSpec(
            path=path,
            peft_type=peft_type,
            r=int(config.get("r") or 0),
            alpha=float(config.get("lora_alpha") or 0),
            use_rslora=bool(config.get("use_rslora")),
            use_dora=bool(config.get("use_dora")),
            fan_in_fan_out=bool(config.get("fan_in_fan_out")),
            rank_pattern=_numbers(config.get("rank_pattern"), int),
            alpha_pattern=_numbers(config.get("alpha_pattern"), float),
            feedforward_modules=_names(config.get("feedforward_modules")),
            trainable_token_indices=_token_indices(config.get("trainable_token_indices")),
            base_model=_optional_text(config.get("base_model_name_or_path")),
            record=_read_record(path / "edgeadapt.json"),
            config=config,
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise CorruptFileError(f"{path / CONFIG} has a value of the wrong kind: {error}") from error


def _check_weights_file(path: Path) -> None:
    if (path / WEIGHTS).is_file():
        return
    pickled = [p.name for p in path.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".ckpt"}]
    if pickled:
        raise InputError(
            f"{path} holds its weights as a pickle ({pickled[0]}), which can run code when it is "
            "loaded; save it again with save_pretrained(..., safe_serialization=True)"
        )
    raise InputError(f"{path} has no {WEIGHTS}; save the adapter again with save_pretrained")


def _check_lora(config: Mapping[str, Any]) -> None:
    """Refuse what a merge of A and B alone would get silently wrong."""
    init = config.get("init_lora_weights", True)
    name = init.lower() if isinstance(init, str) else init
    if isinstance(name, str) and name.startswith(_BASE_CHANGING_INITS):
        raise UnsupportedError(
            f"this adapter was initialised with {init!r}, which changes the base weights at every "
            "load; convert it to a plain LoRA with PEFT's save_pretrained(..., "
            "path_initial_model_for_weight_conversion=...) and give that one"
        )
    if name not in _PLAIN_INITS:
        raise UnsupportedError(
            f"this adapter was initialised with {init!r}, which edgeadapt does not know; "
            "known are default, gaussian, eva and orthogonal"
        )
    for key, label in _LORA_VARIANT_FIELDS.items():
        if config.get(key):
            raise UnsupportedError(
                f"this adapter uses {label} ({key}), which has no merged form; edgeadapt merges "
                "LoRA, rsLoRA, DoRA, IA3 and PEFT's other weight-changing methods"
            )


def trained_system(folder: Path) -> str | None:
    """The system prompt that training put before conversations without one, where it tells.

    Args:
        folder: of an adapter, or of a model that was trained whole.
    """
    return system_in(_read_record(folder / "edgeadapt.json"))


def system_in(record: Mapping[str, Any]) -> str | None:
    """The same, of a training's record."""
    settings = record.get("settings")
    system = settings.get("system") if isinstance(settings, dict) else None
    return system if isinstance(system, str) else None


def _read_record(path: Path) -> dict[str, Any]:
    record = read_json(path) if path.is_file() else {}
    if not isinstance(record, dict):
        raise CorruptFileError(f"{path} does not hold a JSON object; remove it, or train again")
    return record


def _numbers(pattern: Any, kind: Callable[[Any], Number]) -> dict[str, Number]:
    return {str(key): kind(value) for key, value in dict(pattern or {}).items()}


def _optional_text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _names(value: Any) -> str | tuple[str, ...]:
    return value if isinstance(value, str) else tuple(value or ())


def _token_indices(value: Any) -> dict[str, tuple[int, ...]]:
    """PEFT takes a list (meaning the input embedding) or a dict of lists."""
    if not value:
        return {}
    if isinstance(value, dict):
        return {str(name): tuple(int(i) for i in rows) for name, rows in value.items()}
    return {"embed_tokens": tuple(int(i) for i in value)}
