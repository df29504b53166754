"""Every way to run a model on a device, with what it takes and gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgeadapt.devices import DeviceProfile, RuntimeChoice
from edgeadapt.errors import UnsupportedError
from edgeadapt.hardware import Figure
from edgeadapt.planner.model import ModelFacts
from edgeadapt.planner.quality import QualityLoss, expected_loss
from edgeadapt.prediction import (
    Interval,
    MemoryNeed,
    decode_speed,
    memory_needed,
    prefill_speed,
    profile_hardware,
)
from edgeadapt.prediction.memory import GIB, KV_WIDTH

PROMPT_TOKENS = 512
"""Prompt that the time to the first token is told for; the context if that is shorter."""


@dataclass(frozen=True)
class Budget:
    """What a candidate must keep to."""

    memory_gib: float
    min_decode_tps: float | None = None
    max_ttft_s: float | None = None


@dataclass(frozen=True)
class Candidate:
    """One runtime and quantization."""

    runtime: RuntimeChoice
    quantization: str
    why: str
    """The profile's reason for the quantization."""
    threads: int
    gpu_layers: str
    """`none`, `all` or a number: what `--gpu-layers` should be."""
    size_bytes: float
    exact: bool
    """Whether the size is exact."""
    memory: MemoryNeed
    decode: Interval
    """Tokens a second with the context half full."""
    prefill: Interval
    ttft_low_s: float
    ttft_high_s: float
    """Seconds to the first token after `PROMPT_TOKENS`, 80% interval."""
    loss: QualityLoss | None
    fits: bool
    missed: tuple[str, ...] = ()
    """Budgets that it misses even at the good end of its interval."""
    unsure: tuple[str, ...] = ()
    """Budgets that lie inside its interval."""
    pareto: bool = False
    """No other that fits is better in memory, speed or quality without being worse elsewhere."""

    @property
    def format(self) -> str:
        """Of the artifact."""
        return self.runtime.format

    def __str__(self) -> str:
        on = " (GPU)" if self.runtime.backend == "gpu" else ""
        return f"{self.format} {self.quantization}{on}"

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "runtime": self.runtime.name,
            "backend": self.runtime.backend,
            "format": self.format,
            "quantization": self.quantization,
            "threads": self.threads,
            "gpu_layers": self.gpu_layers,
            "size_bytes": round(self.size_bytes),
            "size_exact": self.exact,
            "memory_bytes": {
                "total": round(self.memory.total),
                "weights": round(self.memory.weights),
                "kv_cache": round(self.memory.cache),
                "overhead": round(self.memory.overhead),
            },
            "decode_tps": _bounds(self.decode),
            "prefill_tps": _bounds(self.prefill),
            "ttft_s": {"low": round(self.ttft_low_s, 3), "high": round(self.ttft_high_s, 3)},
            "perplexity_rise": None
            if self.loss is None
            else {"low": round(self.loss.low, 5), "high": round(self.loss.high, 5)},
            "fits": self.fits,
            "missed": list(self.missed),
            "unsure": list(self.unsure),
            "pareto": self.pareto,
        }


def _bounds(interval: Interval) -> dict[str, float]:
    return {"low": round(interval.low, 3), "high": round(interval.high, 3)}


def default_budget(
    profile: DeviceProfile,
    *,
    max_memory_gib: float | None = None,
    min_decode_tps: float | None = None,
    max_ttft_s: float | None = None,
) -> Budget:
    """The profile's budgets, each replaced by what is given; never more than the RAM leaves."""
    asked = profile.budgets
    ceiling = max_memory_gib if max_memory_gib is not None else _value(asked.max_memory_gib)
    room = profile.model_budget_gib
    return Budget(
        memory_gib=room if ceiling is None else min(room, ceiling),
        min_decode_tps=min_decode_tps
        if min_decode_tps is not None
        else _value(asked.min_decode_tps),
        max_ttft_s=max_ttft_s if max_ttft_s is not None else _value(asked.max_ttft_s),
    )


def _value(figure: Figure | None) -> float | None:
    return None if figure is None else figure.value


def candidates(
    profile: DeviceProfile, model: ModelFacts, context: int, budget: Budget
) -> tuple[list[Candidate], dict[str, str]]:
    """All candidates in the profile's order, and formats that the model has no place in, with why.

    Raises:
        InputError: the profile names a quantization whose size is not known.
    """
    found: list[Candidate] = []
    refused: dict[str, str] = {}
    for runtime in profile.runtimes:
        for quantization in runtime.quantizations:
            try:
                size, exact = model.size(runtime.format, quantization.name)
            except UnsupportedError as error:
                refused[runtime.format] = str(error)
                break
            made = _candidate(profile, model, context, runtime, quantization.name, size)
            found.append(_judge(replace(made, why=quantization.reason, exact=exact), budget))
    return mark_pareto(found), refused


def _candidate(
    profile: DeviceProfile,
    model: ModelFacts,
    context: int,
    runtime: RuntimeChoice,
    quantization: str,
    size: float,
) -> Candidate:
    hardware = profile_hardware(profile, runtime.backend)
    threads = int(profile.threads.value)
    width = KV_WIDTH[runtime.format]
    half = model.workload(quantization, size, context // 2, width)
    prompt = min(PROMPT_TOKENS, context)
    prefill = prefill_speed(hardware, half, runtime.name, tokens=prompt, threads=threads)
    return Candidate(
        runtime=runtime,
        quantization=quantization,
        why="",
        threads=threads,
        gpu_layers=str(profile.gpu.layers) if profile.gpu and runtime.backend == "gpu" else "none",
        size_bytes=size,
        exact=False,
        memory=memory_needed(size, model.kv_bytes_per_token * context, runtime.format),
        decode=decode_speed(hardware, half, runtime.name, threads=threads),
        prefill=prefill,
        ttft_low_s=prompt / prefill.high,
        ttft_high_s=prompt / prefill.low,
        loss=expected_loss(runtime.format, quantization, model.parameters),
        fits=False,
    )


def _judge(candidate: Candidate, budget: Budget) -> Candidate:
    missed: list[str] = []
    unsure: list[str] = []
    slowest, decode = budget.min_decode_tps, candidate.decode
    if slowest is not None and decode.low < slowest:
        (missed if decode.high < slowest else unsure).append("min_decode_tps")
    longest = budget.max_ttft_s
    if longest is not None and candidate.ttft_high_s > longest:
        (missed if candidate.ttft_low_s > longest else unsure).append("max_ttft")
    fits = candidate.memory.gib <= budget.memory_gib
    return replace(candidate, fits=fits, missed=tuple(missed), unsure=tuple(unsure))


def mark_pareto(found: Sequence[Candidate]) -> list[Candidate]:
    """Mark those that fit and that no other that fits beats."""
    fitting = [candidate for candidate in found if candidate.fits]
    return [
        replace(c, pareto=c.fits and not any(_beats(other, c) for other in fitting)) for c in found
    ]


def _beats(a: Candidate, b: Candidate) -> bool:
    """Whether a is at least as good in everything, and better in something."""
    left, right = _costs(a), _costs(b)
    return left != right and all(x <= y for x, y in zip(left, right, strict=True))


def _costs(c: Candidate) -> tuple[float, float, float]:
    return c.memory.total, -c.decode.median, c.loss.middle if c.loss else 1.0


def context_that_fits(candidate: Candidate, context: int, budget: Budget) -> int:
    """Longest context with which it would fit; 0 if none does."""
    if not candidate.memory.cache:
        return 0
    spare = budget.memory_gib * GIB - (candidate.memory.total - candidate.memory.cache)
    return max(0, int(spare * context // candidate.memory.cache))
