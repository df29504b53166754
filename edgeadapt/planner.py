"""Which format and quantization to export for a device: the first preferred one that fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from edgeadapt.devices import DeviceProfile, RuntimeChoice
from edgeadapt.errors import InputError

_GIB = 1 << 30
_RUNTIME_OVERHEAD_BYTES = 256 << 20
"""An engine's code, graph and work buffers; an estimate for models up to a few billion."""
_SHORTEST_CONTEXT = 128
"""Fewer tokens are no conversation; not worth proposing."""

BITS_PER_WEIGHT = {
    ("gguf", "F32"): 32.0,
    ("gguf", "F16"): 16.0,
    ("gguf", "BF16"): 16.0,
    ("gguf", "Q8_0"): 8.5,
    ("gguf", "Q6_K"): 6.5625,
    ("gguf", "Q5_K_M"): 5.7,
    ("gguf", "Q4_K_M"): 4.85,
    ("gguf", "Q4_0"): 4.55,
    ("onnx", "fp32"): 32.0,
    ("onnx", "fp16"): 16.0,
    ("onnx", "int8"): 9.0,
    ("onnx", "int8-dynamic"): 8.5,
    ("onnx", "int4"): 5.0,
}
"""Bits of a file divided by parameters, for models of a billion parameters and more. The plain
block types follow from their layout (Q8_0: 34 bytes for 32 weights); mixes, and types whose
embeddings or head stay wider, are rounded up from files of such models. In small models the
embeddings are a larger part and take more, where memory is no question."""

_KV_WIDTH = {"gguf": 1, "onnx": 2}
"""The KV cache against float16: llama.cpp's default is float16, exported CPU graphs use float32."""


@dataclass(frozen=True)
class Choice:
    """What to export, and how to run it."""

    format: str
    quantization: str
    runtime: str
    threads: int
    context: int
    memory_gib: float
    """Weights, KV cache and the engine together; an estimate."""
    reason: str
    """For a person: why this runtime, why this quantization, how much memory it takes."""


@dataclass(frozen=True)
class _Candidate:
    runtime: RuntimeChoice
    quantization: str
    why: str
    bytes: float
    """Of all of it."""
    cache_bytes: float
    """Of the KV cache in it."""

    @property
    def gib(self) -> float:
        return self.bytes / _GIB

    def __str__(self) -> str:
        return f"{self.runtime.format} {self.quantization}"


def choose(
    profile: DeviceProfile, *, parameters: int, kv_bytes_per_token: int, context: int | None = None
) -> Choice:
    """Pick format, quantization and runtime for a model on a device.

    The profile's order is the preference; the first that fits its memory budget is taken.

    Args:
        profile: the device.
        parameters: of the model, embeddings included.
        kv_bytes_per_token: bytes that one token takes in the KV cache at float16, all layers.
        context: tokens of KV cache; the profile's default if None.

    Raises:
        InputError: nothing fits; says what comes closest.
    """
    tokens = int(profile.context.value) if context is None else context
    kv_bytes = tokens * kv_bytes_per_token
    budget = profile.model_budget_gib
    too_large: list[_Candidate] = []
    for candidate in _candidates(profile, parameters, kv_bytes):
        if candidate.gib <= budget:
            return Choice(
                format=candidate.runtime.format,
                quantization=candidate.quantization,
                runtime=candidate.runtime.name,
                threads=int(profile.threads.value),
                context=tokens,
                memory_gib=round(candidate.gib, 3),
                reason=_reason(profile, candidate, too_large),
            )
        too_large.append(candidate)
    raise InputError(_nothing_fits(profile, too_large, tokens))


def _candidates(profile: DeviceProfile, parameters: int, kv_bytes: int) -> Iterator[_Candidate]:
    for runtime in profile.runtimes:
        for quantization in runtime.quantizations:
            key = (runtime.format, quantization.name)
            if key not in BITS_PER_WEIGHT:
                raise InputError(
                    f"the profile {profile.name!r} names the {runtime.format} quantization "
                    f"{quantization.name!r}, whose size is not known; choose from "
                    f"{', '.join(name for kind, name in BITS_PER_WEIGHT if kind == runtime.format)}"
                )
            weights = parameters * BITS_PER_WEIGHT[key] / 8
            cache = kv_bytes * _KV_WIDTH[runtime.format]
            total = weights + cache + _RUNTIME_OVERHEAD_BYTES
            yield _Candidate(runtime, quantization.name, quantization.reason, total, cache)


def _reason(profile: DeviceProfile, taken: _Candidate, too_large: list[_Candidate]) -> str:
    passed = f" ({', '.join(map(str, too_large))} would not fit)" if too_large else ""
    return (
        f"{taken} on {taken.runtime.name} for {profile.title}{passed}. "
        f"{taken.runtime.name}: {taken.runtime.reason}. {taken.quantization}: {taken.why}. "
        f"Takes about {taken.gib:.2f} of the {profile.model_budget_gib:.1f} GiB that a model may "
        "have there."
    )


def _nothing_fits(profile: DeviceProfile, too_large: list[_Candidate], tokens: int) -> str:
    closest = min(too_large, key=lambda candidate: candidate.bytes)
    budget = profile.model_budget_gib
    spare = budget * _GIB - (closest.bytes - closest.cache_bytes)
    room = int(spare * tokens // closest.cache_bytes) if closest.cache_bytes else 0
    if room >= _SHORTEST_CONTEXT:
        advice = f"it fits with --context {room} or less"
    else:
        advice = "choose a smaller base or a device with more memory"
    return (
        f"this model does not fit {profile.title}: {closest} comes closest and needs "
        f"{closest.gib:.2f} GiB with a context of {tokens} tokens, of {budget:.2f} GiB that a "
        f"model may have there; {advice}"
    )
