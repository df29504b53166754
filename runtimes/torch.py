"""torch: the reference that every other engine is compared with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from edgeadapt.artifact import Artifact
from edgeadapt.errors import (
    CorruptFileError,
    InputError,
    MissingExtraError,
    RuntimeFailure,
    UnsupportedError,
)
from edgeadapt.extras import need
from edgeadapt.files import read_json
from edgeadapt.runtimes.base import Float32Array, Runtime, Session, SessionSettings
from edgeadapt.runtimes.hf_text import HfEngineText, HfText, check_room
from edgeadapt.tokenizer import ModelTokenizer


class TorchRuntime(Runtime):
    """Hugging Face folders through transformers, in float32 on the CPU."""

    name = "torch"
    formats = frozenset({"hf"})
    modules = ("torch", "transformers.models.auto", "tokenizers")

    def __init__(self, adapter: Path | None = None) -> None:
        """Give a PEFT adapter folder to run it live (unmerged) on whatever base is loaded."""
        self.adapter = adapter

    def load(self, artifact: Artifact, settings: SessionSettings) -> Session:
        """Load a folder; see `Runtime.load`."""
        path = artifact.path
        if artifact.format != "hf":
            raise InputError(f"{path} is {artifact.format}; torch runs Hugging Face folders")
        if not (path / "config.json").is_file():
            raise InputError(f"{path} has no config.json; expected a Hugging Face model folder")
        tokenizer = ModelTokenizer.from_folder(path)
        torch = need("torch", "running a model with torch")
        need("transformers", "running a model with torch")
        torch.set_num_threads(settings.threads)
        model = _load(torch, path, exact=settings.exact)
        if self.adapter is not None:
            model = _adapted(model, self.adapter)
        return TorchSession(torch, model.eval(), tokenizer, settings)

    def open_text(self, artifact: Artifact) -> HfEngineText:
        """The folder's tokenizer.json."""
        tokenizer = ModelTokenizer.from_folder(artifact.path)
        return HfEngineText(tokenizer, tokenizer.stop_ids)

    def version(self) -> str:
        """Version of torch."""
        try:
            return version("torch")
        except PackageNotFoundError as error:
            raise MissingExtraError("torch", "train", "this runtime") from error


class TorchSession(HfText, Session):
    """A transformers model and its cache."""

    def __init__(
        self, torch: Any, model: Any, tokenizer: ModelTokenizer, settings: SessionSettings
    ) -> None:
        super().__init__(tokenizer)
        self._torch = torch
        self._model = model
        self.stop_ids = tokenizer.stop_ids or _config_stop_ids(model.config)
        self.vocab_size = int(model.config.vocab_size)
        longest = getattr(model.config, "max_position_embeddings", settings.context)
        self.capacity = min(settings.context, int(longest))
        self.reset()

    def _run(self, ids: Sequence[int], logits_to_keep: int) -> Any:
        check_room(self.position, len(ids), self.capacity)
        try:
            with self._torch.inference_mode():
                output = self._model(
                    input_ids=self._torch.tensor([list(ids)]),
                    past_key_values=self._cache,
                    use_cache=True,
                    logits_to_keep=logits_to_keep,
                )
        except (RuntimeError, IndexError) as error:
            raise RuntimeFailure(f"torch: {error}") from error
        self.position += len(ids)
        self._last = output.logits[0, -1]
        return output.logits[0]

    def forward(self, ids: Sequence[int]) -> None:
        """Run tokens through the model; see `Session.forward`."""
        self._run(ids, logits_to_keep=1)

    def greedy(self) -> int:
        """Most probable next token."""
        return int(self._last.argmax())

    def last_logits(self) -> Float32Array:
        """Logits after the last `forward`, shape (vocab_size,)."""
        return np.array(self._last.numpy(), dtype=np.float32)

    def all_logits(self, ids: Sequence[int]) -> Float32Array:
        """Logits at every position of a fresh sequence, shape (len(ids), vocab_size)."""
        self.reset()
        return np.array(self._run(ids, logits_to_keep=0).numpy(), dtype=np.float32)

    def reset(self) -> None:
        """Empty the KV cache."""
        from transformers import DynamicCache

        self._cache = DynamicCache(config=self._model.config)
        self._last = None
        self.position = 0

    def build_info(self) -> dict[str, str]:
        """Versions, and the instruction set that torch's kernels use."""
        return {
            "torch": str(self._torch.__version__),
            "transformers": version("transformers"),
            "cpu_capability": str(self._torch.backends.cpu.get_cpu_capability()),
            "attention": str(self._model.config._attn_implementation),
        }

    def threads_in_use(self) -> int:
        """Threads that torch reports."""
        return int(self._torch.get_num_threads())

    def close(self) -> None:
        """Free the model."""
        del self._model, self._cache, self._last


def _load(torch: Any, path: Path, *, exact: bool) -> Any:
    """The model in float32, whole: transformers would fill missing tensors with random numbers."""
    from transformers import AutoModelForCausalLM

    with _reading(path):
        model, report = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=torch.float32,
            attn_implementation="eager" if exact else None,  # else: the best that the model has
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    if missing := sorted(report["missing_keys"]):
        raise CorruptFileError(
            f"{path} lacks {len(missing)} tensors that its config.json asks for, "
            f"the first is {missing[0]}"
        )
    return model


def _adapted(model: Any, adapter: Path) -> Any:
    need("peft", "running an adapter unmerged")
    from peft import PeftModel, PeftType

    if not (adapter / "adapter_model.safetensors").is_file():
        raise InputError(f"{adapter} has no adapter_model.safetensors; expected a PEFT adapter")
    config = read_json(adapter / "adapter_config.json")
    kind = str(config.get("peft_type") if isinstance(config, dict) else None)
    if kind.upper() not in list(PeftType):
        raise UnsupportedError(
            f"{adapter} is of the method {kind.lower()}, which PEFT does not run beside a base; "
            "make one artifact of both: edgeadapt export --adapter"
        )
    with _reading(adapter):
        return PeftModel.from_pretrained(model, adapter, local_files_only=True)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what transformers and safetensors raise on damaged folders into one sentence."""
    from safetensors import SafetensorError
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CorruptFileError(f"transformers cannot load {path}: {text[:300]}") from error
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()


def _config_stop_ids(config: Any) -> frozenset[int]:
    value = getattr(config, "eos_token_id", None)
    return frozenset(value if isinstance(value, list) else [] if value is None else [value])
