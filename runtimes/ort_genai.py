"""onnxruntime-genai: Microsoft's engine for generation over ONNX graphs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from edgeadapt.artifact import Artifact
from edgeadapt.chat_template import Message
from edgeadapt.errors import InputError, MissingExtraError, RuntimeFailure
from edgeadapt.extras import need
from edgeadapt.prefix import is_prefix, refuse_prefix
from edgeadapt.runtimes.base import Float32Array, Runtime, Session, SessionSettings
from edgeadapt.runtimes.hf_text import HfEngineText, HfText, check_room
from edgeadapt.runtimes.onnx_adapter import read_adapter
from edgeadapt.runtimes.onnx_folder import OnnxFolder, kernel_features, loading, said
from edgeadapt.runtimes.onnx_providers import GENAI_PROVIDERS, require

_FATAL = 4
_CPU = "CPUExecutionProvider"
_ADAPTER = "active"
"""What the one adapter that is loaded is called."""


class OrtGenaiRuntime(Runtime):
    """ONNX folders through onnxruntime-genai."""

    name = "ort-genai"
    formats = frozenset({"onnx"})
    modules = ("onnxruntime_genai", "tokenizers")
    providers = GENAI_PROVIDERS

    def load(self, artifact: Artifact, settings: SessionSettings) -> Session:
        """Load a folder; see `Runtime.load`."""
        folder = OnnxFolder.open(artifact)
        og = need("onnxruntime_genai", "running an ONNX model with onnxruntime-genai")
        return OrtGenaiSession(og, folder, settings)

    def open_text(self, artifact: Artifact) -> OrtGenaiText:
        """The engine's own tokenizer and template renderer."""
        folder = OnnxFolder.open(artifact)
        og = need("onnxruntime_genai", "running an ONNX model with onnxruntime-genai")
        return OrtGenaiText(og, folder)

    def version(self) -> str:
        """Version of onnxruntime-genai."""
        try:
            return version("onnxruntime-genai")
        except PackageNotFoundError as error:
            raise MissingExtraError("onnxruntime_genai", "onnx", "this runtime") from error


class OrtGenaiText(HfEngineText):
    """onnxruntime-genai's tokenizer, written anew in C++, as an app calls it.

    It gives no list of its vocabulary: `tokens` is that of the tokenizer.json that it reads.
    """

    def __init__(self, og: Any, folder: OnnxFolder) -> None:
        super().__init__(folder.tokenizer, folder.stop_ids)
        with loading(folder, RuntimeError):
            self._own = og.Tokenizer(str(folder.path))
        self.bos_id = int(self._own.bos_token_id)
        self.stop_ids = frozenset(int(token) for token in self._own.eos_token_ids)

    def encode(self, text: str, *, add_special: bool) -> list[int]:
        """See `EngineText.encode`."""
        try:
            self._own.update_options(add_special_tokens="true" if add_special else "false")
            return [int(token) for token in self._own.encode(text)]
        except RuntimeError as error:
            raise RuntimeFailure(f"onnxruntime-genai: {said(error)}") from error

    def render(
        self, messages: Sequence[Message], *, tools: Sequence[dict[str, Any]] | None = None
    ) -> str:
        """See `EngineText.render`."""
        more = {} if tools is None else {"tools": json.dumps(list(tools), ensure_ascii=False)}
        try:
            text: str = self._own.apply_chat_template(
                json.dumps(list(messages), ensure_ascii=False), add_generation_prompt=True, **more
            )
        except RuntimeError as error:  # what its C++ exceptions become
            raise InputError(f"onnxruntime-genai: {said(error)}") from error
        return text


class OrtGenaiSession(HfText, Session):
    """One generator, driven by `append_tokens` alone, so that it never picks tokens itself.

    Decoding that way is as fast as `generate_next_token`. The graph computes logits at every
    position that is fed, and `get_output` gives them all. `exact` changes nothing: the KV cache is
    as wide as the graph has it, and the rounding of activations is part of the graph.
    """

    def __init__(self, og: Any, folder: OnnxFolder, settings: SessionSettings) -> None:
        super().__init__(folder.tokenizer)
        self.stop_ids = folder.stop_ids
        self.vocab_size = folder.vocab_size
        self.position = 0
        self._og, self._folder, self._adapters = og, folder.path, None
        self._threads = settings.threads
        self.capacity = min(settings.context, folder.context_length)
        self._logits_name = folder.decoder["outputs"]["logits"]
        session_options = {"intra_op_num_threads": settings.threads, "log_severity_level": _FATAL}
        provider = require(settings.provider, genai=True)
        self._providers = " ".join(dict.fromkeys((require(settings.provider), _CPU)))
        overlay = {"model": {"decoder": {"session_options": session_options}}}
        with loading(folder, RuntimeError):
            config = og.Config(str(folder.path))
            config.overlay(json.dumps(overlay))
            if provider != "cpu":
                config.clear_providers()
                config.append_provider(provider)
            self._model = og.Model(config)
            self._generator = self._new_generator()

    def _new_generator(self) -> Any:
        params = self._og.GeneratorParams(self._model)
        params.set_search_options(max_length=self.capacity, do_sample=False)
        return self._og.Generator(self._model, params)

    def forward(self, ids: Sequence[int]) -> None:
        """Run tokens through the model; see `Session.forward`."""
        check_room(self.position, len(ids), self.capacity)
        try:
            self._generator.append_tokens(np.asarray(ids, dtype=np.int32))
        except RuntimeError as error:  # what its C++ exceptions become
            self._generator.rewind_to(self.position)
            raise RuntimeFailure(f"onnxruntime-genai: {said(error)}") from error
        self.position += len(ids)

    def greedy(self) -> int:
        """Most probable next token."""
        return int(self._generator.get_logits()[0, -1].argmax())

    def last_logits(self) -> Float32Array:
        """Logits after the last `forward`, shape (vocab_size,)."""
        return np.array(self._generator.get_logits()[0, -1], dtype=np.float32)

    def all_logits(self, ids: Sequence[int]) -> Float32Array:
        """Logits at every position of a fresh sequence, shape (len(ids), vocab_size)."""
        self.reset()
        self.forward(ids)
        return np.array(self._generator.get_output(self._logits_name)[0], dtype=np.float32)

    def reset(self) -> None:
        """Empty the KV cache."""
        self._generator.rewind_to(0)
        self.position = 0

    def use_adapter(self, path: Path | None) -> None:
        """Switch adapters; see `Session.use_adapter`.

        A generator keeps its adapter for life, so that each switch makes a new one, and the last
        adapter is unloaded with the old one.
        """
        adapters = None
        if path is not None and is_prefix(path):
            raise refuse_prefix(path, OrtGenaiRuntime.name)
        if path is not None:
            read_adapter(path, self._folder)  # says better than the engine what does not fit
            adapters = self._og.Adapters(self._model)
            try:
                adapters.load(str(path), _ADAPTER)
            except RuntimeError as error:
                raise RuntimeFailure(f"onnxruntime-genai: {said(error)}") from error
        del self._generator
        if self._adapters is not None:
            self._adapters.unload(_ADAPTER)
        self._generator, self._adapters = self._new_generator(), adapters
        if adapters is not None:
            self._generator.set_active_adapter(adapters, _ADAPTER)
        self.position = 0

    def build_info(self) -> dict[str, str]:
        """Version, providers, and the CPU features that kernels are chosen by at run time."""
        return {
            "onnxruntime-genai": version("onnxruntime-genai"),
            "onnxruntime": version("onnxruntime"),
            "providers": self._providers,
            "cpu_features": kernel_features(),
        }

    def threads_in_use(self) -> int:
        """Threads it was told to compute with; the engine does not report any."""
        return self._threads

    def close(self) -> None:
        """Free the model."""
        del self._generator, self._adapters, self._model
