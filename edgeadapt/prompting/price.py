"""What a prompting's tokens cost on a device: memory for keys and values, and time to prefill."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgeadapt.devices import DeviceProfile
from edgeadapt.planner.model import ModelFacts
from edgeadapt.prediction import Interval, prefill_speed, profile_hardware
from edgeadapt.prediction.memory import KV_WIDTH
from edgeadapt.prompting.lengths import PromptLengths


@dataclass(frozen=True)
class PromptPrice:
    """The price of the tokens that a prompting adds to a question."""

    device: str
    runtime: str
    kv_bytes_mean: float
    kv_bytes_max: float
    """Of the added tokens in the KV cache, as wide as the format keeps it."""
    prefill_s: Interval
    """Seconds for the added tokens of one question, on average; holds four cases of five."""
    once_s: Interval
    """Seconds of them for the tokens that all questions share, if these are prefilled once."""
    each_s: Interval
    """Seconds that are then left for each question."""

    def record(self) -> dict[str, Any]:
        """As JSON."""
        seconds = {"prefill_s": self.prefill_s, "once_s": self.once_s, "each_s": self.each_s}
        return {
            "device": self.device,
            "runtime": self.runtime,
            "kv_bytes": {"mean": round(self.kv_bytes_mean), "max": round(self.kv_bytes_max)},
            **{name: interval.record() for name, interval in seconds.items()},
        }


def prompt_price(
    profile: DeviceProfile,
    model: ModelFacts,
    lengths: PromptLengths,
    *,
    runtime: str,
    format: str,
    quantization: str,
    size_bytes: float,
    threads: int | None = None,
) -> PromptPrice:
    """Predict the price of a prompting on a device's CPU.

    Args:
        profile: the device.
        model: the model in the artifact.
        lengths: what the prompting adds.
        runtime: the engine.
        format: of the artifact.
        quantization: of the artifact.
        size_bytes: of the artifact.
        threads: by default the profile's.
    """
    width = KV_WIDTH.get(format, 2)
    prompt = max(1, round(lengths.plain_mean + lengths.added_mean))
    work = model.workload(quantization, size_bytes, prompt // 2, width)
    speed = prefill_speed(
        profile_hardware(profile, "cpu"), work, runtime, tokens=prompt,
        threads=threads or int(profile.threads.value),
    )  # fmt: skip
    token = model.kv_bytes_per_token * width
    return PromptPrice(
        device=profile.name,
        runtime=runtime,
        kv_bytes_mean=token * lengths.added_mean,
        kv_bytes_max=token * lengths.added_max,
        prefill_s=speed.seconds_for(lengths.added_mean),
        once_s=speed.seconds_for(lengths.shared),
        each_s=speed.seconds_for(lengths.added_each),
    )
