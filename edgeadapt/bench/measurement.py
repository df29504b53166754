"""What one benchmark run found out, as a versioned document.

Times are in seconds, speeds in tokens per second, sizes in bytes. A figure that this system
does not give is null, never a guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from edgeadapt.bench.memory import MemoryPoint

SCHEMA_VERSION: Literal[1] = 1


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Distribution(_Model):
    """What repetitions gave."""

    median: float
    p5: float
    p95: float
    count: int
    samples: tuple[float, ...] = ()
    """In order of time; left out where there are as many as tokens."""

    @classmethod
    def of(cls, values: Sequence[float], *, keep: bool = True) -> Distribution:
        """Percentiles (linear interpolation) of at least one value."""
        p5, median, p95 = (float(p) for p in np.percentile(values, (5, 50, 95)))
        samples = tuple(values) if keep else ()
        return cls(median=median, p5=p5, p95=p95, count=len(values), samples=samples)


class ArtifactFacts(_Model):
    """Which file or folder was measured."""

    path: str
    format: str
    quantization: str
    size_bytes: int
    sha256: str


class RuntimeFacts(_Model):
    """Which engine ran it."""

    name: str
    version: str
    build: dict[str, str]
    """Versions and CPU features that the engine reports of itself."""
    threads_requested: int
    threads_in_use: int
    """What the engine says that it was set to."""
    threads_running: int | None = None
    """Threads of the process that really computed during the timed repetitions, as the kernel
    counted them; null where it does not tell."""
    cores_used: float | None = None
    """Seconds of CPU per second of the timed repetitions, of the whole process."""
    model: str | None = None
    """What the engine says of the model, as "llama 1B Q4_0"."""
    parameters: int | None = None
    """Weights, counted by the engine."""
    tensor_bytes: int | None = None
    """Of all tensors, counted by the engine; a file holds metadata besides."""
    gpu_layers: int | None = None
    """Layers that the engine says it gave to a GPU; null unless some were asked for."""
    gpus: tuple[str, ...] = ()
    """GPUs that the engine saw."""


class Machine(_Model):
    """Where it ran."""

    cpu: str
    isa: tuple[str, ...]
    """The CPU's own flags, those that matter to matrix kernels."""
    physical_cores: int | None
    available_cores: int
    memory_bytes: int
    os: str
    governor: str | None
    busy: float | None
    """Share of all cores that other programs used in the half second before the run."""


class Background(_Model):
    """What else the machine did during the timed repetitions."""

    others: float | None
    """Share of all cores that everything but the measured process used; our own sampler, which
    is kept below a fifth of a percent of one core, is in it."""
    steal: float | None
    """Share of all cores that the hypervisor gave to other machines."""
    load_average: float | None
    """Of the minute before they ended, the measured process included."""


class Settings(_Model):
    """What was asked for."""

    prompt_tokens: int
    decode_tokens: int
    repetitions: int
    warmup_repetitions: int
    context: int
    adapter: str | None = None
    """Name of the adapter that was active; None for the artifact alone."""
    depths: tuple[int, ...] = ()
    """Tokens in the KV cache at which decoding was measured besides."""
    sustain_s: float | None = None
    gpu_layers: int | None = None
    """Asked for; -1 for all."""
    memory_limit: int | None = None
    """Bytes of memory of its own that the process was allowed."""
    warm: str | None = None
    """Name of the warm prompt that first tokens were measured after, besides."""


class DepthSpeed(_Model):
    """Decoding with a KV cache that already holds `depth` tokens."""

    depth: int
    decode_tps: Distribution
    fill_s: Distribution | None
    """Prefilling the `depth` tokens; null at depth 0."""


class PageCache(_Model):
    """Whether the weights were in memory already when loading began."""

    state: Literal["cold", "warm"]
    resident_before_load: float | None
    """Fraction of the artifact's pages in the page cache just before loading, by mincore."""


class Memory(_Model):
    """Resident memory of the whole measured process, interpreter and libraries included."""

    peak_rss: int | None
    """The kernel's own high-water mark (VmHWM); elsewhere the largest sample."""
    peak_anonymous: int | None
    peak_file_backed: int | None
    peak_pss: int | None
    at_peak: MemoryPoint | None
    """The sample with the most resident memory; the peaks above may be of different moments."""
    phases: dict[str, MemoryPoint]
    """Between the timed parts: `before_load` (the floor: interpreter and libraries), `loaded`,
    `warmed_up`, `finished`."""
    source: str
    samples: int
    sample_cost_s: float | None
    """What reading one sample took, the median; sampling takes at most 0.2% of the time."""


class Energy(_Model):
    """What a counter of the machine counted during the timed repetitions, all else included."""

    source: Literal["rapl", "ina3221", "battery"]
    scope: str
    """What is behind the counter: `package-0`, the board's `VDD_IN`, the whole machine."""
    joules: float
    seconds: float
    """From the end of the warm-up to the end of the last repetition."""
    repetitions: int


class Window(_Model):
    """A part of sustained decoding, in order."""

    start_s: float
    seconds: float
    """Of decoding; prefills between are left out."""
    tokens: int
    decode_tps: float
    temperature_c: float | None
    """The hottest sensor at the window's end."""
    frequency_mhz: float | None
    """The mean of the cores' clocks at the window's end."""


class Sustained(_Model):
    """Decoding without a rest for `Settings.sustain_s`."""

    windows: tuple[Window, ...]
    kept: float | None
    """Speed of the last quarter of the windows over that of the first, medians."""
    throttling: tuple[str, ...]
    """What the machine says held it back, in words; empty when nothing does."""
    watched: tuple[str, ...]
    """What this system lets us see of that: `temperature`, `frequency`, `throttle counters`,
    `cooling devices`."""


class WarmFirstToken(_Model):
    """The first token of a conversation that begins with a warm prompt, with its state and without.

    Both are measured by turns, each with its own warm-up.
    """

    tokens: int
    """Of the warm prompt."""
    question_tokens: int
    """After it: `Settings.prompt_tokens`."""
    state_bytes: int
    state: Literal["shipped", "kept", "computed"]
    """Lay beside the prompt, in this machine's cache, or was computed on loading."""
    ready_s: float
    """Once after loading: checking that the prompt is for this artifact, and reading (or computing)
    its state."""
    ttft_s: Distribution
    """Taking the state up, running the question and finding the first token."""
    ttft_without_s: Distribution
    """The same from an empty KV cache: running prompt and question."""


class Measurement(_Model):
    """One artifact on one runtime.

    `load_s` and `first_answer_s` belong to the stated state of the page cache; the distributions
    are of repetitions after the warm-up, when everything that is used is in memory.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    artifact: ArtifactFacts
    runtime: RuntimeFacts
    machine: Machine
    settings: Settings
    page_cache: PageCache
    import_s: float
    """Importing the engine's Python modules; not part of `load_s`."""
    load_s: float
    """From the path to a session that takes tokens."""
    first_answer_s: float
    """Prefill and first token of the warm-up: with the page faults of freshly mapped weights."""
    ttft_s: Distribution
    """Prompt submitted until the first token is known, at `prompt_tokens`."""
    prefill_tps: Distribution
    decode_tps: Distribution
    """Greedy steps after the first token."""
    decode_step_s: Distribution
    """Single decode steps of all repetitions."""
    memory: Memory
    outcome: Literal["ok"] = "ok"
    background: Background | None = None
    energy: Energy | None = None
    """Null where no counter can be read: it is never estimated."""
    depths: tuple[DepthSpeed, ...] = ()
    sustained: Sustained | None = None
    warm: WarmFirstToken | None = None


class Failure(_Model):
    """A run that gave no figures, in the place of its `Measurement`."""

    schema_version: Literal[1] = SCHEMA_VERSION
    outcome: Literal["timeout", "killed", "out_of_memory", "failed"]
    reason: str
    """One sentence."""
    artifact: str
    """Its path."""
    runtime: str
    threads: int
    seconds: float
    """From the start of the run to its end."""
