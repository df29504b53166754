"""What every engine offers: load an artifact, run tokens through it, say what it is."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from edgeadapt.artifact import Artifact
from edgeadapt.chat_template import Message
from edgeadapt.errors import InputError, UnsupportedError

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class SessionSettings:
    """How to run a model."""

    threads: int
    context: int = 2048
    """KV cache size in tokens."""
    exact: bool = False
    """Trade speed for the least rounding the engine can do: float32 KV cache, no flash
    attention. For comparing logits; quality and speed are stated at the engine's defaults."""
    provider: str = "cpu"
    """What computes: one of the runtime's `providers`."""
    gpu_layers: int | None = None
    """Layers to give to a GPU, -1 for all; None leaves it to the engine's kind (llama.cpp: 0)."""


@dataclass(frozen=True)
class EngineFacts:
    """What an engine tells of the loaded model and of where it computes."""

    model: str | None = None
    """Its description, as "llama 1B Q4_0"."""
    parameters: int | None = None
    tensor_bytes: int | None = None
    """All tensors of the model, without the file's metadata and padding."""
    gpu_layers: int | None = None
    """Layers that are on a GPU; None if none were asked for."""
    gpus: tuple[str, ...] = ()
    """GPUs that it sees."""


class Session(abc.ABC):
    """A loaded model with one sequence: a KV cache that `forward` extends and `reset` empties."""

    stop_ids: frozenset[int]
    """Any of these token ids ends a generation."""
    vocab_size: int
    """Width of the logits."""
    position: int
    """Tokens now in the KV cache."""
    start: int = 0
    """Where a fresh sequence begins: after the positions of a prefix."""
    capacity: int
    """Most tokens that the KV cache holds: as many as were asked for, or the model has positions.
    `forward` refuses more."""

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, special tokens in it recognised, none added."""

    @abc.abstractmethod
    def token_bytes(self, token: int) -> bytes:
        """UTF-8 bytes that one token stands for; empty for control tokens."""

    @abc.abstractmethod
    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """Text of a conversation under the chat template shipped with the artifact."""

    @abc.abstractmethod
    def forward(self, ids: Sequence[int]) -> None:
        """Run tokens through the model, extending the KV cache; keeps the last logits.

        Raises:
            InputError: more tokens than the context holds.
            RuntimeFailure: the engine reported an error.
        """

    @abc.abstractmethod
    def greedy(self) -> int:
        """Most probable next token after the last `forward`, without copying logits."""

    @abc.abstractmethod
    def last_logits(self) -> Float32Array:
        """A copy of the logits after the last `forward`, shape (vocab_size,)."""

    @abc.abstractmethod
    def all_logits(self, ids: Sequence[int]) -> Float32Array:
        """Logits at every position of a fresh sequence, shape (len(ids), vocab_size)."""

    def logits_at(
        self, ids: Sequence[int], positions: Sequence[int], *, kept: int = 0
    ) -> Float32Array:
        """Logits at some positions of a sequence, shape (len(positions), vocab_size).

        Args:
            ids: the sequence.
            positions: indices into it, increasing.
            kept: so many tokens at its beginning, at most up to the first position, are those of
                the last call, with nothing run in between: an engine may keep what it has of them
                (this one computes all again). The batches then differ, and with them the engine's
                rounding: with `exact`, logits hardly change.
        """
        every = self.all_logits(ids[: positions[-1] + 1])
        return np.take(every, positions, axis=0)

    @abc.abstractmethod
    def reset(self) -> None:
        """Empty the KV cache."""

    def save_state(self) -> bytes:
        """What the KV cache holds now, to begin from again with `restore_state`.

        Raises:
            UnsupportedError: this engine gives none; see `Runtime.keeps_state`.
        """
        raise UnsupportedError("this runtime gives no state of its KV cache")

    def restore_state(self, saved: bytes) -> None:
        """Go back to what `save_state` gave, here or in another session with the same settings.

        There are no logits until the next `forward`.

        Raises:
            RuntimeFailure: the engine does not take it; the KV cache is empty then.
            UnsupportedError: as `save_state`.
        """
        raise UnsupportedError("this runtime takes no state of its KV cache")

    def state_settings(self) -> dict[str, str]:
        """What a state depends on beside the model and the tokens: it fits only where all of these
        are the same."""
        return {}

    @abc.abstractmethod
    def build_info(self) -> dict[str, str]:
        """Version of the engine and the CPU features that it was built with or uses."""

    @abc.abstractmethod
    def threads_in_use(self) -> int:
        """Threads the engine reports to compute with."""

    def facts(self) -> EngineFacts:
        """What the engine tells of the loaded model; empty unless it does."""
        return EngineFacts()

    @abc.abstractmethod
    def close(self) -> None:
        """Free the model."""

    def use_adapter(self, path: Path | None) -> None:
        """Switch to an adapter in the engine's own format, or with None back to the base alone.

        Empties the KV cache: what is in it was computed with other weights.

        Raises:
            InputError: the file is missing, damaged, or made for another model.
            UnsupportedError: this engine loads no adapters here.
        """
        if path is not None:
            raise UnsupportedError(
                f"this runtime cannot use the adapter {path}; llama.cpp loads GGUF files, and ONNX "
                "runtimes .onnx_adapter files, made with edgeadapt export --adapter-mode separate"
            )
        self.reset()

    def generate(
        self, ids: Sequence[int], *, max_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> Iterator[int]:
        """Continue after `ids`, token by token, until a stop token (not yielded) or the limit.

        Args:
            ids: tokens to append to what the KV cache already holds.
            max_tokens: most tokens to yield.
            temperature: 0 for greedy, else softmax sampling at this temperature.
            seed: of the sampling.
        """
        random = np.random.default_rng(seed)
        self.forward(ids)
        for _ in range(max_tokens):
            if temperature > 0:
                token = _sample(self.last_logits(), temperature, random)
            else:
                token = self.greedy()
            if token in self.stop_ids:
                return
            yield token
            self.forward([token])


def _sample(logits: Float32Array, temperature: float, random: np.random.Generator) -> int:
    """Draw from softmax(logits / temperature) by the Gumbel-max trick."""
    scores = logits.astype(np.float64) / temperature + random.gumbel(size=logits.shape)
    return int(scores.argmax())


class EngineText(abc.ABC):
    """The text half of an engine, opened from what ships, without the weights."""

    bos_id: int | None
    """Begins a text, if the engine puts such a token there or knows of one."""
    eos_id: int | None
    stop_ids: frozenset[int]
    """Any of these ends a generation."""

    @abc.abstractmethod
    def encode(self, text: str, *, add_special: bool) -> list[int]:
        """Token ids of `text`, special tokens in it recognised.

        Args:
            text: what to tokenize.
            add_special: with what the engine puts around a text by itself, as BOS.
        """

    @abc.abstractmethod
    def render(
        self, messages: Sequence[Message], *, tools: Sequence[dict[str, Any]] | None = None
    ) -> str:
        """A conversation under the shipped template, ending where an answer begins.

        Raises:
            InputError: there is no template, or it rejects the messages.
        """

    @abc.abstractmethod
    def tokens(self) -> list[str | None]:
        """The vocabulary as the files spell it, by id; None where an id has no token."""

    def close(self) -> None:  # noqa: B027 - most have nothing to free
        """Free what the engine holds; nothing, unless it says otherwise."""


class Runtime(abc.ABC):
    """One engine."""

    name: ClassVar[str]
    formats: ClassVar[frozenset[str]]
    """Artifact formats that it loads: `gguf`, `onnx`, `hf`."""
    modules: ClassVar[tuple[str, ...]] = ()
    """Python modules of the engine; imported before `load` is timed, so that it is load alone."""
    providers: ClassVar[tuple[str, ...]] = ("cpu",)
    """Execution providers that can be asked for, by name; whether one is there, `load` tells."""
    keeps_state: ClassVar[bool] = False
    """Its sessions have `save_state` and `restore_state`."""

    @abc.abstractmethod
    def load(self, artifact: Artifact, settings: SessionSettings) -> Session:
        """Load a model.

        Raises:
            InputError: the artifact is not of a format that this engine loads.
            CorruptFileError: its files are damaged.
            MissingExtraError: the engine is not installed.
        """

    def open_text(self, artifact: Artifact) -> EngineText | None:
        """What the engine makes of text, from the artifact's files; None if it does not tell.

        Raises:
            InputError: the artifact has no tokenizer, or is of another format.
            CorruptFileError: its files are damaged.
            MissingExtraError: the engine is not installed.
        """
        return None

    def check_provider(self, name: str) -> None:
        """See that an execution provider can be asked for here.

        Raises:
            InputError: it cannot.
        """
        if name.lower() not in self.providers:
            raise InputError(
                f"{self.name} has no execution provider {name!r}; it has "
                f"{', '.join(self.providers)}"
            )

    @abc.abstractmethod
    def version(self) -> str:
        """Version of the engine's library, without loading a model."""
