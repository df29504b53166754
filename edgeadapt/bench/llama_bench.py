"""llama-bench's JSON, read and written: figures of devices that have no Python join ours.

The fields are those of `test::get_fields` in llama.cpp's tools/llama-bench/llama-bench.cpp, with
the samples that its JSON printers add. A file is somebody else's: every value is checked.
"""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.functional_validators import AfterValidator

from edgeadapt.bench.measurement import SCHEMA_VERSION, Distribution, Measurement
from edgeadapt.errors import CorruptFileError, InputError

_MOST_BYTES = 1 << 26
_MOST = 10**15


def _printable(text: str) -> str:
    """No control characters: they would reach a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


_Text = Annotated[str, Field(max_length=4096), AfterValidator(_printable)]
_Count = Annotated[int, Field(ge=0, le=_MOST)]
_Speed = Annotated[float, Field(gt=0, le=_MOST, allow_inf_nan=False)]


class _Entry(BaseModel):
    """One test of llama-bench, the fields that we use."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    build_commit: _Text = ""
    build_number: _Count = 0
    cpu_info: _Text = ""
    gpu_info: _Text = ""
    backends: _Text = ""
    model_filename: _Text
    model_type: _Text = ""
    model_size: _Count = 0
    model_n_params: _Count = 0
    n_threads: _Count
    n_gpu_layers: Annotated[int, Field(ge=-1, le=_MOST)] = 0
    type_k: _Text = ""
    type_v: _Text = ""
    n_prompt: _Count
    n_gen: _Count
    n_depth: _Count = 0
    test_time: _Text = ""
    samples_ts: Annotated[tuple[_Speed, ...], Field(min_length=1, max_length=100_000)]
    """Tokens per second of each repetition."""


class Speed(BaseModel):
    """One test: prefill or decode, with `depth` tokens in the KV cache before."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: int
    depth: int
    tps: Distribution


class Imported(BaseModel):
    """What llama-bench measured of one model with one setting, in the place of a `Measurement`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = SCHEMA_VERSION
    outcome: Literal["ok"] = "ok"
    source: Literal["llama-bench"] = "llama-bench"
    model: str
    """The file's path, there."""
    description: str
    size_bytes: int
    """Of the tensors."""
    parameters: int
    build: str
    cpu: str
    gpu: str
    backends: str
    threads: int
    cores: tuple[int, ...] = ()
    """It was bound to these, where edgeadapt started it; else empty."""
    peak_rss: int | None = None
    """Bytes of memory of the whole process, mapped weights among them; of all tests of this model
    together. Known where edgeadapt started it, on Linux and Android."""
    gpu_layers: int
    cache_types: str
    """Of keys and values in the KV cache."""
    measured_at: str
    prefill: tuple[Speed, ...]
    decode: tuple[Speed, ...]
    skipped: int
    """Tests of prefill and decode together, which give neither's speed."""


def read_llama_bench(path: Path) -> list[Imported]:
    """Read the output of `llama-bench -o json` or `-o jsonl`.

    Raises:
        InputError: the file is missing, unreadable or far too large.
        CorruptFileError: it is something else; names the entry and the field.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InputError(f"{path} is too large to be llama-bench's output")
        text = path.read_bytes().decode("utf-8", "replace")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    entries = [_entry(path, number, value) for number, value in enumerate(_values(path, text))]
    if not entries:
        raise CorruptFileError(f"{path} holds no tests; expected the output of llama-bench -o json")

    def setting(entry: _Entry) -> tuple[Any, ...]:
        used = {"n_prompt", "n_gen", "n_depth", "test_time", "samples_ts"}
        return tuple(entry.model_dump(exclude=used).values())

    groups = itertools.groupby(sorted(entries, key=setting), key=setting)
    return [_imported(list(group)) for _, group in groups]


def _values(path: Path, text: str) -> list[Any]:
    try:
        if text.lstrip().startswith("["):
            found = json.loads(text)
            return found if isinstance(found, list) else [found]
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(
            f"{path} is not JSON ({error}); expected the output of llama-bench -o json"
        ) from error


def _entry(path: Path, number: int, value: Any) -> _Entry:
    try:
        return _Entry.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(_printable(str(part)) for part in first["loc"][:3]) or "the entry"
        raise CorruptFileError(
            f"{path} is not the output of llama-bench -o json: test {number}: {where}: "
            f"{first['msg']}"
        ) from error


def _imported(entries: Sequence[_Entry]) -> Imported:
    first = entries[0]
    return Imported(
        model=first.model_filename,
        description=first.model_type,
        size_bytes=first.model_size,
        parameters=first.model_n_params,
        build=f"b{first.build_number}-{first.build_commit}",
        cpu=first.cpu_info,
        gpu=first.gpu_info,
        backends=first.backends,
        threads=first.n_threads,
        gpu_layers=first.n_gpu_layers,
        cache_types=f"{first.type_k}/{first.type_v}",
        measured_at=max(entry.test_time for entry in entries),
        prefill=tuple(_speed(e.n_prompt, e) for e in entries if e.n_prompt and not e.n_gen),
        decode=tuple(_speed(e.n_gen, e) for e in entries if e.n_gen and not e.n_prompt),
        skipped=sum(bool(e.n_prompt) == bool(e.n_gen) for e in entries),
    )


def _speed(tokens: int, entry: _Entry) -> Speed:
    return Speed(tokens=tokens, depth=entry.n_depth, tps=Distribution.of(entry.samples_ts))


def as_llama_bench(measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
    """Entries as `llama-bench -o json` prints them: prefill and decode of each measurement.

    Decoding comes after the prompt, so its `n_depth` is the prompt's length.

    Args:
        measurements: of llama.cpp; those of other engines are left out.
    """
    found = []
    for m in measurements:
        if m.runtime.name != "llama-cpp":
            continue
        prompt, decode = m.settings.prompt_tokens, m.settings.decode_tokens
        found.append(_test(m, m.prefill_tps.samples, n_prompt=prompt))
        found.append(_test(m, m.decode_tps.samples, n_gen=decode, n_depth=prompt))
        for depth in m.depths:
            found.append(_test(m, depth.decode_tps.samples, n_gen=decode, n_depth=depth.depth))
    return found


def _test(
    m: Measurement, speeds: Sequence[float], *, n_prompt: int = 0, n_gen: int = 0, n_depth: int = 0
) -> dict[str, Any]:
    nanoseconds = [round(1e9 * (n_prompt + n_gen) / speed) for speed in speeds]
    gpus = [gpu.partition(":") for gpu in m.runtime.gpus]
    return {
        "build_commit": m.runtime.build.get("llama.cpp", ""),
        "build_number": 0,
        "cpu_info": m.machine.cpu,
        "gpu_info": ", ".join(description.strip() for _, _, description in gpus),
        "backends": ",".join(dict.fromkeys(name.rstrip("0123456789") for name, _, _ in gpus))
        or "CPU",
        "model_filename": m.artifact.path,
        "model_type": m.runtime.model or m.artifact.quantization,
        "model_size": m.runtime.tensor_bytes or m.artifact.size_bytes,
        "model_n_params": m.runtime.parameters or 0,
        **_SETTINGS,
        "n_batch": min(m.settings.context, 2048),
        "n_ubatch": min(m.settings.context, 512),
        "n_threads": m.runtime.threads_in_use,
        "n_gpu_layers": m.runtime.gpu_layers or 0,
        "n_prompt": n_prompt,
        "n_gen": n_gen,
        "n_depth": n_depth,
        "test_time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "avg_ns": round(statistics.mean(nanoseconds)),
        "stddev_ns": round(_deviation(nanoseconds)),
        "avg_ts": statistics.mean(speeds),
        "stddev_ts": _deviation(speeds),
        "samples_ns": nanoseconds,
        "samples_ts": list(speeds),
    }


_SETTINGS: dict[str, Any] = {
    "cpu_mask": "0x0", "cpu_strict": False, "poll": 50, "type_k": "f16", "type_v": "f16",
    "n_cpu_moe": 0, "split_mode": "layer", "main_gpu": 0, "no_kv_offload": False,
    "flash_attn": -1, "devices": "auto", "tensor_split": "0.00", "tensor_buft_overrides": "none",
    "load_mode": "mmap", "embeddings": False, "no_op_offload": 0, "no_host": False,
    "repack": True,
}  # fmt: skip
"""llama.cpp's defaults, which our runs leave as they are."""


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
