"""What a warm prompt saves on a device: seconds to the first token with its state and without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgeadapt.devices import DeviceProfile, RuntimeChoice
from edgeadapt.planner.model import ModelFacts
from edgeadapt.prediction import prefill_speed, profile_hardware
from edgeadapt.prediction.memory import KV_WIDTH
from edgeadapt.runtimes.registry import get_runtime, runtime_names

QUESTION_TOKENS = 32
"""Tokens after the warm prompt that both times are told for."""


@dataclass(frozen=True)
class Seconds:
    """An 80% interval."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{_short(self.low)}-{_short(self.high)}"

    def record(self) -> dict[str, float]:
        """As JSON."""
        return {"low": round(self.low, 6), "high": round(self.high, 6)}


def _short(seconds: float) -> str:
    return f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.2g}"


@dataclass(frozen=True)
class FirstToken:
    """Of a conversation that begins with a warm prompt, on one runtime and quantization."""

    runtime: RuntimeChoice
    quantization: str
    tokens: int
    """Of the warm prompt."""
    state_bytes: float
    without: Seconds
    """Prompt and question are run."""
    warm: Seconds | None
    """The question alone is; None where the runtime cannot start from a state."""

    def __str__(self) -> str:
        text = (
            f"predicted there: first token {self.without} s after this prompt and "
            f"{QUESTION_TOKENS} tokens more"
        )
        if self.warm is None:
            return f"{text}; {self.runtime.name} cannot start from a state"
        return f"{text}; {self.warm} s with its state (80% intervals)"

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "runtime": self.runtime.name,
            "backend": self.runtime.backend,
            "quantization": self.quantization,
            "tokens": self.tokens,
            "question_tokens": QUESTION_TOKENS,
            "state_bytes": round(self.state_bytes),
            "ttft_without_s": self.without.record(),
            "ttft_s": None if self.warm is None else self.warm.record(),
        }


def first_token(
    profile: DeviceProfile,
    model: ModelFacts,
    runtime: RuntimeChoice,
    quantization: str,
    *,
    size_bytes: float,
    tokens: int,
) -> FirstToken:
    """Predict both times from the speed at which prompts are run.

    Reading the state, some megabytes, is left out; so is checking, once, that it fits.

    Args:
        profile: the device.
        model: what runs there.
        runtime: one of the profile's.
        quantization: of the artifact.
        size_bytes: of the artifact.
        tokens: of the warm prompt.
    """
    name, width = runtime.name, KV_WIDTH[runtime.format]
    hardware = profile_hardware(profile, runtime.backend)
    threads = int(profile.threads.value)
    work = model.workload(quantization, size_bytes, tokens + QUESTION_TOKENS, width)

    def seconds(count: int) -> Seconds:
        speed = prefill_speed(hardware, work, name, tokens=count, threads=threads)
        return Seconds(count / speed.high, count / speed.low)

    able = name in runtime_names() and get_runtime(name).keeps_state
    return FirstToken(
        runtime,
        quantization,
        tokens,
        model.kv_bytes_per_token * width * tokens,
        seconds(tokens + QUESTION_TOKENS),
        seconds(QUESTION_TOKENS) if able else None,
    )
