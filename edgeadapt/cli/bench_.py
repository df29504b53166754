"""`edgeadapt bench`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeadapt.cli.bench_options import elsewhere_options, llama_bench_options, method_options
from edgeadapt.cli.common import end_when_asked, provider_option, standard
from edgeadapt.console import emit, emit_json
from edgeadapt.errors import InputError, RuntimeFailure

if TYPE_CHECKING:
    from edgeadapt.bench.llama_bench import Imported
    from edgeadapt.bench.measurement import Failure, Measurement


@click.command("bench")
@click.argument("artifacts", metavar="[ARTIFACT]...", nargs=-1, type=Path)
@click.option(
    "--runtime",
    metavar="NAME",
    help="llama-cpp, ort-genai, onnxruntime, torch, or 'all' that are installed and load the "
    "artifact. By default the preferred one for its format.",
)
@click.option(
    "--prompt-tokens", type=click.IntRange(1), default=128, show_default=True,
    help="Length of the prompt that is prefilled.",
)  # fmt: skip
@click.option(
    "--decode-tokens", type=click.IntRange(1), default=64, show_default=True,
    help="Greedy steps after the first token.",
)  # fmt: skip
@click.option(
    "--repetitions", type=click.IntRange(1), default=5, show_default=True,
    help="Timed ones; one more, not counted, warms up.",
)  # fmt: skip
@click.option(
    "--context", type=click.IntRange(1), help="KV cache in tokens. Default: what it takes."
)
@provider_option
@click.option(
    "--adapter", type=click.Path(path_type=Path),
    help="With this adapter active: a .gguf or .onnx_adapter file, or for torch a PEFT folder.",
)  # fmt: skip
@click.option(
    "--warm", type=click.Path(path_type=Path), metavar="FILE",
    help="Also the time to the first token after this .warm.json, with its state and without, by "
    "turns; the prompt of --prompt-tokens is what follows it.",
)  # fmt: skip
@click.option("--cold", is_flag=True, help="Drop the artifact from the page cache before loading.")
@click.option(
    "--timeout", type=click.FloatRange(1), default=1800.0, show_default=True,
    help="Seconds for one artifact on one runtime.",
)  # fmt: skip
@method_options
@llama_bench_options
@click.option("--out", type=Path, help="Also write the measurements to this new JSON file.")
@elsewhere_options
@standard
def command(
    artifacts: tuple[Path, ...],
    runtime: str | None,
    threads: tuple[int, ...],
    device: str | None,
    timeout: float,
    sustain: float | None,
    imports: tuple[Path, ...],
    llama_bench_json: Path | None,
    out: Path | None,
    on: str | None,
    llama_bench: Path | None,
    cores: tuple[int, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Measure latency and memory of ARTIFACTs on their runtimes.

    Each one runs in a process of its own: load time, time to first token, prefill and decode
    speed (median, p5 and p95 over repetitions after a warm-up), and peak memory split into
    the process's own and file-backed. Files are read once before a run (warm), unless --cold.
    A run that takes too long, is killed or runs out of memory is a record with its outcome; the
    others go on, and the end is exit code 2.

    \b
      edgeadapt bench model.gguf
      edgeadapt bench model.gguf onnx-folder --runtime all --threads 4
      edgeadapt bench model.gguf --threads sweep --depths 0,1024 --sustain 10m
      edgeadapt bench model.gguf --warm model.warm.json --prompt-tokens 16
      edgeadapt bench model.gguf --import from-the-board.json
      edgeadapt bench model.gguf --on ssh://pi@raspberrypi
      edgeadapt bench model.gguf --on adb:// --llama-bench android/bin/llama-bench
    """
    from edgeadapt.bench.llama_bench import read_llama_bench
    from edgeadapt.bench.series import bench_each
    from edgeadapt.transports.bench import Means
    from edgeadapt.transports.options import elsewhere

    if not artifacts and not imports:
        raise InputError("nothing to measure; give an ARTIFACT, or --import a file of llama-bench")
    _check_new(out, llama_bench_json)
    if (llama_bench or cores) and (on is None or on.startswith("qemu://")):
        raise InputError("--llama-bench and --cores are for --on ssh:// or adb://")
    if on is not None and on.startswith("qemu://"):
        from edgeadapt.transports.proof import prove_and_show

        prove_and_show(on, artifacts, out=out, as_json=as_json, timeout_s=timeout)
        return
    imported = [found for path in imports for found in read_llama_bench(path)]
    end_when_asked()
    records: list[Measurement | Failure] = []
    means = Means(llama_bench, cores, _profile_cores(device))
    bench = bench_each if on is None else elsewhere(on, imported, means)
    try:
        for _ in bench(
            artifacts,
            records,
            runtime=runtime,
            threads=threads or _profile_threads(device),
            timeout_s=timeout,
            sustain_s=sustain,
            **options,
        ):
            pass
    finally:
        if records or imported:
            _show([*records, *imported], out, as_json)
            _write_llama_bench(llama_bench_json, records)
    _fail_for(records)


def _check_new(*paths: Path | None) -> None:
    for path in paths:
        if path is not None and path.exists():
            raise InputError(f"{path} exists already; choose another name, or remove it first")


def _profile_threads(device: str | None) -> tuple[int, ...]:
    if device is None:
        return ()
    from edgeadapt.devices import load_profile

    return (int(load_profile(device).threads.value),)


def _profile_cores(device: str | None) -> int:
    if device is None:
        return 0
    from edgeadapt.devices import load_profile

    return load_profile(device).fast_cores


def _write_llama_bench(path: Path | None, records: Sequence[Measurement | Failure]) -> None:
    if path is None:
        return
    from edgeadapt.bench.llama_bench import as_llama_bench
    from edgeadapt.files import write_json

    found = as_llama_bench([record for record in records if record.outcome == "ok"])
    write_json(path, found, overwrite=False)


def _show(
    records: Sequence[Measurement | Failure | Imported], out: Path | None, as_json: bool
) -> None:
    from edgeadapt.bench.table import render
    from edgeadapt.files import write_json

    document = [record.model_dump(mode="json") for record in records]
    if out is not None:
        write_json(out, document, overwrite=False)
    if as_json:
        emit_json(document)
    else:
        emit(render(records))


def _fail_for(records: Sequence[Measurement | Failure]) -> None:
    failures = [record for record in records if record.outcome != "ok"]
    if not failures:
        return
    more = f" ({len(failures)} of {len(records)} runs failed)" if len(records) > 1 else ""
    raise RuntimeFailure(f"{failures[0].reason}{more}", failures[0].outcome)
