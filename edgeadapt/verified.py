"""Export for a device, measure what was made, and take the next candidate if it misses a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeadapt.artifact import Artifact
from edgeadapt.bench.llama_bench import Imported
from edgeadapt.bench.measurement import Failure, Measurement
from edgeadapt.console import log
from edgeadapt.converters.onnx.options import OnnxOptions, for_device
from edgeadapt.devices import DeviceProfile
from edgeadapt.errors import GateFailure, InputError
from edgeadapt.export import ModelToExport, export
from edgeadapt.files import write_json
from edgeadapt.planner import Budget, Candidate, Plan, make_plan
from edgeadapt.planner.candidates import PROMPT_TOKENS
from edgeadapt.planner.sizes import facts_of
from edgeadapt.prediction.memory import GIB

HERE = "here"
GATE = "budget"
SUFFIX = ".verification.json"
_MOST_DECODED = 64
_REPETITIONS = 3

Check = Callable[[Artifact], None]


class _Missed(Exception):
    """The artifact that was just made is not to be kept."""


@dataclass(frozen=True)
class Attempt:
    """One candidate: what was predicted of it, what was measured, and what it missed."""

    candidate: Candidate
    measured: dict[str, Any] | None
    """Decode speed, time to the first token and memory; None where nothing could be measured."""
    missed: tuple[str, ...]
    """A sentence for each budget that it does not keep, or why it did not run."""

    def record(self) -> dict[str, Any]:
        """As JSON."""
        inside = None
        if self.measured is not None:
            interval = self.candidate.decode
            inside = interval.low <= self.measured["decode_tps"] <= interval.high
        return {
            "predicted": self.candidate.record(),
            "measured": self.measured,
            "decode_inside_interval": inside,
            "missed": list(self.missed),
        }

    def __str__(self) -> str:
        if self.measured is None:
            return f"{self.candidate}: {'; '.join(self.missed)}"
        figures = self.measured
        memory = figures["memory_bytes"]
        told = [
            f"{figures['decode_tps']:.1f} tokens a second, {self.candidate.decode} predicted",
            f"first token after {figures['ttft_s']:.2f} s",
        ]
        if memory is not None:
            told.append(f"{memory / 2**20:.0f} MiB resident")
        return f"{self.candidate}: {'; '.join((*told, *self.missed))}"


@dataclass(frozen=True)
class Verified:
    """An artifact that keeps the budgets, and all that was tried."""

    artifact: Artifact
    plan: Plan
    attempts: tuple[Attempt, ...]

    def record(self) -> dict[str, Any]:
        """As JSON."""
        budget = self.plan.budget
        return {
            "device": self.plan.profile.name,
            "context": self.plan.context,
            "budget": {
                "memory_bytes": round(budget.memory_gib * GIB),
                "min_decode_tps": budget.min_decode_tps,
                "max_ttft_s": budget.max_ttft_s,
            },
            "attempts": [attempt.record() for attempt in self.attempts],
        }


def export_verified(
    model: ModelToExport,
    profile: DeviceProfile,
    out: Path,
    *,
    host: str,
    llama_bench: Path | None = None,
    quantization: str | None = None,
    context: int | None = None,
    threads: int | None = None,
    check: Check | None = None,
    onnx: OnnxOptions | None = None,
) -> Verified:
    """Export the candidates of a device's plan in turn, until one keeps the budgets when measured.

    What was tried is written beside the artifact, to the same name and `SUFFIX`.

    Args:
        model: what to export.
        profile: the device.
        out: the file or folder to make.
        host: where to measure: `HERE`, or a URL as of `bench --on`.
        llama_bench: a program here to measure with there; None: what is installed there.
        quantization: try this one alone.
        context: tokens of KV cache; the profile's default if None.
        threads: to export with; the benchmark takes the profile's.
        check: is shown each artifact before it is measured; if it raises, nothing is left.
        onnx: options of the ONNX converter.

    Raises:
        InputError: `out` exists, nothing fits the memory, or the host's URL is malformed.
        GateFailure: no candidate keeps the budgets; the record has all attempts.
        HostFailure: the host is not to be reached.
    """
    record_file = out.with_name(out.name + SUFFIX)
    for path in (out, record_file):
        if path.exists():
            raise InputError(f"{path} exists already; choose another --out, or remove it first")
    plan = make_plan(profile, facts_of(model), context=context)
    order = [c for c in plan.in_order() if quantization in (None, c.quantization)]
    if not order:
        raise InputError(plan.reason)
    attempts: list[Attempt] = []
    for candidate in order:
        options = onnx or OnnxOptions()
        if candidate.format == "onnx":
            options = for_device(options, profile, candidate.quantization)
        trial = _Trial(candidate, plan, host, llama_bench, check, attempts)
        try:
            made = export(
                model, candidate.format, candidate.quantization, out, threads=threads,
                check=trial, onnx=options,
            )  # fmt: skip
        except _Missed:
            continue
        done = Verified(made, plan, tuple(attempts))
        write_json(record_file, done.record(), overwrite=False)
        return done
    raise _nothing_keeps(plan, attempts)


@dataclass(frozen=True)
class _Trial:
    """A `check` for `export`: adds an attempt, and stops the export where it missed a budget."""

    candidate: Candidate
    plan: Plan
    host: str
    llama_bench: Path | None
    first: Check | None
    """Has to be content before anything is measured."""
    attempts: list[Attempt]

    def __call__(self, artifact: Artifact) -> None:
        if self.first is not None:
            self.first(artifact)
        attempt = _attempt(artifact.path, self.candidate, self.plan, self.host, self.llama_bench)
        self.attempts.append(attempt)
        if attempt.missed:
            log.info("%s", attempt)  # the result tells of the one that is kept
            raise _Missed


def _nothing_keeps(plan: Plan, attempts: Sequence[Attempt]) -> GateFailure:
    lines = "\n".join(f"  {attempt}" for attempt in attempts)
    return GateFailure(
        f"nothing that fits {plan.profile.title} keeps its budgets when measured:\n{lines}\n"
        "choose a smaller base, a shorter --context, or raise the budgets in a profile of your own",
        {"failed_gates": [GATE], "attempts": [attempt.record() for attempt in attempts]},
    )


def _attempt(
    path: Path, candidate: Candidate, plan: Plan, host: str, llama_bench: Path | None
) -> Attempt:
    if host == HERE:
        found: Measurement | Failure | Imported = _here(path, candidate, plan)
    else:
        found = _there(path, candidate, plan, host, llama_bench)
    if isinstance(found, Failure):
        return Attempt(candidate, None, (found.reason,))
    if isinstance(found, Imported):
        measured = _of_llama_bench(found, candidate, plan)
    else:
        measured = _figures(found)
    return Attempt(candidate, measured, tuple(_misses(measured, plan.budget)))


def _figures(found: Measurement) -> dict[str, Any]:
    return {
        "runtime": found.runtime.name,
        "cpu": found.machine.cpu,
        "threads": found.runtime.threads_in_use,
        "decode_tps": found.decode_tps.median,
        "ttft_s": found.ttft_s.median,
        "prompt_tokens": found.settings.prompt_tokens,
        "memory_bytes": found.memory.peak_rss,
    }


def _of_llama_bench(found: Imported, candidate: Candidate, plan: Plan) -> dict[str, Any]:
    """The same of llama-bench, decoding with the context half full, as predicted.

    The time to the first token is that of the prompt. llama-bench makes its KV cache as long as its
    longest test; what the plan's is longer is added as computed.
    """
    method, half = _method(candidate, plan), plan.context // 2
    prompt, longest = method["prompt_tokens"], max(method["prompt_tokens"], method["decode_tokens"])
    prefill = next(s.tps.median for s in found.prefill if s.depth == 0)
    decode = next(s.tps.median for s in found.decode if s.depth == half)
    rest = candidate.memory.cache * max(0.0, 1 - (half + longest) / plan.context)
    return {
        "runtime": "llama-bench",
        "cpu": found.cpu,
        "threads": found.threads,
        "decode_tps": decode,
        "ttft_s": prompt / prefill,
        "prompt_tokens": prompt,
        "memory_bytes": None if found.peak_rss is None else found.peak_rss + round(rest),
    }


def _misses(measured: dict[str, Any], budget: Budget) -> Iterator[str]:
    memory, slowest, longest = measured["memory_bytes"], budget.min_decode_tps, budget.max_ttft_s
    if memory is not None and memory > budget.memory_gib * GIB:
        yield f"more memory than the {budget.memory_gib * 1024:.0f} MiB of the budget"
    if slowest is not None and measured["decode_tps"] < slowest:
        yield f"slower than the {slowest:g} tokens a second of the budget"
    if longest is not None and measured["ttft_s"] > longest:
        yield f"its first token later than the {longest:g} s of the budget"


def _method(candidate: Candidate, plan: Plan) -> dict[str, int]:
    """What to measure, as options of `edgeadapt bench`."""
    told = {
        "prompt_tokens": min(PROMPT_TOKENS, plan.context // 2),
        "decode_tokens": min(_MOST_DECODED, plan.context // 4),
        "repetitions": _REPETITIONS,
        "context": plan.context,
    }
    if candidate.runtime.backend == "gpu":
        told["gpu_layers"] = -1 if candidate.gpu_layers == "all" else int(candidate.gpu_layers)
    return told


def _here(path: Path, candidate: Candidate, plan: Plan) -> Measurement | Failure:
    from edgeadapt.bench.series import bench_each
    from edgeadapt.jobs import available_threads

    records: list[Measurement | Failure] = []
    for _ in bench_each(
        [path], records, runtime=candidate.runtime.name,
        threads=(min(candidate.threads, available_threads()),), **_method(candidate, plan),
    ):  # fmt: skip
        pass
    return records[0]


def _there(
    path: Path, candidate: Candidate, plan: Plan, url: str, llama_bench: Path | None
) -> Measurement | Failure | Imported:
    from edgeadapt.transports.bench import Means, bench_on

    means = Means(llama_bench, fast_cores=plan.profile.fast_cores)
    method = _method(candidate, plan)
    typed = ["--runtime", candidate.runtime.name, "--threads", str(candidate.threads)]
    for name, value in method.items():
        typed += [f"--{name.replace('_', '-')}", str(value)]
    values: dict[str, Any] = {name: value for name, value in method.items() if name != "context"}
    values |= {"threads": (candidate.threads,), "depths": (0, plan.context // 2)}
    (found,) = bench_on(url, [path], typed, values, means)
    return found
