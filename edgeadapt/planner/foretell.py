"""What an artifact will do on a device, before it is run there."""

from __future__ import annotations

from typing import Any

from edgeadapt.devices import DeviceProfile
from edgeadapt.planner.model import ModelFacts
from edgeadapt.prediction import (
    decode_speed,
    memory_needed,
    prefill_speed,
    profile_hardware,
)
from edgeadapt.prediction.memory import KV_WIDTH


def foretell(
    profile: DeviceProfile,
    model: ModelFacts,
    *,
    runtime: str,
    format: str,
    quantization: str,
    size_bytes: int,
    prompt_tokens: int,
    decode_tokens: int,
    context: int,
    threads: int | None = None,
) -> dict[str, Any]:
    """Speed and memory of an artifact on a device's CPU, as JSON, speeds as 80% intervals.

    Args:
        profile: the device.
        model: the model in it.
        runtime: the engine.
        format: of the artifact.
        quantization: of the artifact.
        size_bytes: of the artifact.
        prompt_tokens: tokens that are prefilled.
        decode_tokens: tokens that are decoded after them.
        context: tokens of the KV cache.
        threads: by default the profile's.
    """
    threads = threads or int(profile.threads.value)
    hardware, width = profile_hardware(profile, "cpu"), KV_WIDTH[format]
    depth = prompt_tokens + decode_tokens // 2
    decoding = model.workload(quantization, size_bytes, depth, width)
    prefilling = model.workload(quantization, size_bytes, prompt_tokens // 2, width)
    decode = decode_speed(hardware, decoding, runtime, threads=threads)
    prefill = prefill_speed(hardware, prefilling, runtime, tokens=prompt_tokens, threads=threads)
    memory = memory_needed(size_bytes, model.kv_bytes_per_token * context, format)
    return {
        "device": profile.name,
        "title": profile.title,
        "runtime": runtime,
        "quantization": quantization,
        "threads": threads,
        "decode_tps": decode.record(),
        "prefill_tps": prefill.record(),
        "memory_bytes": round(memory.total),
    }
