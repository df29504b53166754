"""Plain onnxruntime: one inference session, the KV cache in buffers that are ours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from edgeadapt.artifact import Artifact
from edgeadapt.errors import CorruptFileError, MissingExtraError, RuntimeFailure
from edgeadapt.extras import need
from edgeadapt.prefix import Prefix, is_prefix, read_prefix
from edgeadapt.runtimes.base import Float32Array, Runtime, Session, SessionSettings
from edgeadapt.runtimes.hf_text import HfEngineText, HfText, check_room
from edgeadapt.runtimes.onnx_adapter import read_adapter
from edgeadapt.runtimes.onnx_cache import (
    AlternatingCache,
    CacheShape,
    KvCache,
    SharedCache,
    cache_names,
    tensor_dtype,
)
from edgeadapt.runtimes.onnx_folder import OnnxFolder, kernel_features, loading, said
from edgeadapt.runtimes.onnx_providers import PROVIDERS, check_taken, require

_FATAL = 4
_PREFILL_CHUNK = 512
"""Tokens per run: the graph gives logits at every position, and this bounds their memory."""


class OnnxruntimeRuntime(Runtime):
    """ONNX folders through onnxruntime alone, as an app without onnxruntime-genai would."""

    name = "onnxruntime"
    formats = frozenset({"onnx"})
    modules = ("onnxruntime", "tokenizers")
    keeps_state = True
    providers = PROVIDERS

    def load(self, artifact: Artifact, settings: SessionSettings) -> Session:
        """Load a folder; see `Runtime.load`."""
        folder = OnnxFolder.open(artifact)
        ort = need("onnxruntime", "running an ONNX model with onnxruntime")
        return OnnxruntimeSession(ort, folder, settings)

    def open_text(self, artifact: Artifact) -> HfEngineText:
        """The shipped tokenizer.json, which is an app's own business here."""
        self.version()
        folder = OnnxFolder.open(artifact)
        return HfEngineText(folder.tokenizer, folder.stop_ids)

    def version(self) -> str:
        """Version of onnxruntime."""
        try:
            return version("onnxruntime")
        except PackageNotFoundError as error:
            raise MissingExtraError("onnxruntime", "onnx", "this runtime") from error


class OnnxruntimeSession(HfText, Session):
    """Keys and values stay in buffers that were allocated once (see `onnx_cache`).

    `exact` changes nothing: the KV cache is as wide as the graph has it, and the rounding of
    activations is part of the graph.
    """

    def __init__(self, ort: Any, folder: OnnxFolder, settings: SessionSettings) -> None:
        super().__init__(folder.tokenizer)
        self.stop_ids = folder.stop_ids
        self.vocab_size = folder.vocab_size
        self.position = 0
        self.capacity = min(settings.context, folder.context_length)
        self._ort = ort
        self._errors = _engine_errors()
        provider = require(settings.provider)
        with loading(folder, *self._errors):
            self._session = ort.InferenceSession(
                str(folder.graph),
                _options(ort, settings.threads, folder.session_entries),
                list(dict.fromkeys((provider, "CPUExecutionProvider"))),
            )
        check_taken(self._session, provider)
        self._inputs = {entry.name: entry for entry in self._session.get_inputs()}
        outputs = {entry.name: entry for entry in self._session.get_outputs()}
        self._logits_name = folder.decoder["outputs"]["logits"]
        with _as_described(folder):
            logits = outputs[self._logits_name]
            _check_shape(logits, (-1,), (self.vocab_size,))
            self._dtype = tensor_dtype(logits.type)
            self._cache = self._make_cache(folder, outputs)
        self._binding = self._session.io_binding()
        self._folder, self._adapter = folder, dict[str, Any]()
        self._prefix: Prefix | None = None
        self._mask = np.ones((1, self.capacity), dtype=np.int64)
        self._last: Float32Array = np.zeros((1, 1, self.vocab_size), dtype=np.float32)

    def _make_cache(self, folder: OnnxFolder, outputs: Mapping[str, Any]) -> KvCache:
        decoder, names = folder.decoder, cache_names(folder.decoder)
        heads, size = decoder["num_key_value_heads"], decoder["head_size"]
        for past, present in names.items():
            for entry in (self._inputs[past], outputs[present]):
                _check_shape(entry, (1, 3), (heads, size))
        shape = CacheShape(heads, size, self.capacity)
        dtype = tensor_dtype(self._inputs[next(iter(names))].type)
        if (folder.genai.get("search") or {}).get("past_present_share_buffer"):
            return SharedCache(self._ort, names, shape, dtype)
        return AlternatingCache(names, shape, dtype)

    def _run(self, ids: Sequence[int]) -> Float32Array:
        """Extend the cache by a few tokens; logits (1, len(ids), vocab_size), ours to keep."""
        count, end = len(ids), self.position + len(ids)
        feeds = {
            "input_ids": np.asarray([ids], dtype=np.int64),
            "attention_mask": self._mask[:, :end],
            "position_ids": np.arange(self.position, end, dtype=np.int64)[None],
        }
        for name, value in feeds.items():
            if name in self._inputs:
                self._binding.bind_cpu_input(name, np.ascontiguousarray(value))
        shape = (1, count, self.vocab_size)
        whole = self._dtype is np.float32
        logits = self._last if count == 1 and whole else np.empty(shape, dtype=self._dtype)
        self._binding.bind_output(
            self._logits_name, "cpu", 0, self._dtype, shape, logits.ctypes.data
        )
        self._cache.bind(self._binding, self.position, count)
        try:
            self._session.run_with_iobinding(self._binding)
        except self._errors as error:
            raise RuntimeFailure(f"onnxruntime: {said(error)}") from error
        self._cache.done()
        self.position = end
        return logits if whole else logits.astype(np.float32)

    def _feed(self, ids: Sequence[int], all_logits: Float32Array | None = None) -> None:
        check_room(self.position, len(ids), self.capacity)
        for start in range(0, len(ids), _PREFILL_CHUNK):
            part = ids[start : start + _PREFILL_CHUNK]
            logits = self._run(part)
            if all_logits is not None:
                all_logits[start : start + len(part)] = logits[0]
        if logits is not self._last:
            self._last[:] = logits[:, -1:]

    def forward(self, ids: Sequence[int]) -> None:
        """Run tokens through the model; see `Session.forward`."""
        self._feed(ids)

    def greedy(self) -> int:
        """Most probable next token."""
        return int(self._last.argmax())

    def last_logits(self) -> Float32Array:
        """Logits after the last `forward`, shape (vocab_size,)."""
        return np.array(self._last[0, 0])

    def all_logits(self, ids: Sequence[int]) -> Float32Array:
        """Logits at every position of a fresh sequence, shape (len(ids), vocab_size)."""
        self.reset()
        result = np.empty((len(ids), self.vocab_size), dtype=np.float32)
        self._feed(ids, result)
        return result

    def reset(self) -> None:
        """Empty the KV cache, but for a prefix; its buffers are overwritten as they fill again."""
        self.start = 0
        if self._prefix is not None:
            self._cache.fill(_by_input(self._prefix, self._folder.decoder))
            self.start = self._prefix.tokens
        self.position = self.start

    def use_adapter(self, path: Path | None) -> None:
        """Switch adapters; see `Session.use_adapter`.

        The adapter's tensors are bound as inputs, since onnxruntime (1.32) leaves the active
        adapters of the run options aside where inputs are bound. What the last adapter gave and
        this one does not is bound to nothing again: to a matrix of rank 0.
        """
        self._prefix, given = None, dict[str, Any]()
        if path is not None and is_prefix(path):
            prefix, decoder = read_prefix(path), self._folder.decoder
            heads, size = decoder["num_key_value_heads"], decoder["head_size"]
            prefix.check(decoder["num_hidden_layers"], heads, size, self.capacity)
            self._prefix = prefix
        elif path is not None:
            given = read_adapter(path, self._folder.path)
        for name in self._adapter.keys() - given.keys():
            rank_axis = 1 if name.endswith(".lora_A.weight") else 0
            shape = list(self._adapter[name].shape())
            shape[rank_axis] = 0
            given[name] = self._ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))
        for name, value in given.items():
            self._binding.bind_ortvalue_input(name, value)
        self._adapter = given
        self.reset()

    def save_state(self) -> bytes:
        """The filled part of the cache's buffers; see `Session.save_state`."""
        return self._cache.dump(self.position)

    def restore_state(self, saved: bytes) -> None:
        """See `Session.restore_state`."""
        self.position = 0
        self.position = self._cache.restore(saved)

    def state_settings(self) -> dict[str, str]:
        """Library, and how wide the cache is."""
        return {"onnxruntime": version("onnxruntime"), "kv_cache": self._cache.dtype}

    def build_info(self) -> dict[str, str]:
        """Version, build, providers, and the CPU features that kernels are chosen by."""
        return {
            "onnxruntime": version("onnxruntime"),
            "build": str(self._ort.get_build_info()),
            "providers": " ".join(self._session.get_providers()),
            "cpu_features": kernel_features(),
        }

    def threads_in_use(self) -> int:
        """Threads that the session's options say."""
        return int(self._session.get_session_options().intra_op_num_threads)

    def close(self) -> None:
        """Free the model."""
        del self._binding, self._cache, self._adapter, self._session


def _by_input(prefix: Prefix, decoder: Mapping[str, Any]) -> dict[str, Any]:
    """A prefix by the names of the graph's past inputs, with a batch of one."""
    inputs = decoder["inputs"]
    return {
        inputs[f"past_{kind}_names"] % layer: stacked[layer][None]
        for kind, stacked in (("key", prefix.keys), ("value", prefix.values))
        for layer in range(len(stacked))
    }


@contextlib.contextmanager
def _as_described(folder: OnnxFolder) -> Iterator[None]:
    """Turn a graph without what genai_config.json says of it into a `CorruptFileError`."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(
            f"{folder.graph} is not the graph that genai_config.json describes: {error!r}; "
            "export again"
        ) from error


def _check_shape(entry: Any, axes: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    """See that an input or output of the graph is as large as it is thought to be.

    Raises:
        ValueError: it is not.
    """
    for axis, size in zip(axes, sizes, strict=True):
        found = entry.shape[axis]
        if isinstance(found, int) and found != size:  # names stand for what may vary
            raise ValueError(f"{entry.name} has shape {entry.shape}, expected {size} in it")


def _options(ort: Any, threads: int, entries: Mapping[str, str]) -> Any:
    options = ort.SessionOptions()
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL
    return options


def _engine_errors() -> tuple[type[Exception], ...]:
    """What onnxruntime raises: one class per status code, with no base of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    found = (getattr(state, name) for name in dir(state))
    return (
        RuntimeError,
        ValueError,
        *(x for x in found if isinstance(x, type) and issubclass(x, Exception)),
    )
