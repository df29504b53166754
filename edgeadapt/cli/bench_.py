"""`edgeadapt bench`."""

from __future__ import annotations

from pathlib import Path

import click

from edgeadapt.cli.common import end_when_asked, provider_option, standard
from edgeadapt.console import emit, emit_json
from edgeadapt.errors import InputError


@click.command("bench")
@click.argument("artifacts", metavar="ARTIFACT...", nargs=-1, required=True, type=Path)
@click.option(
    "--runtime",
    metavar="NAME",
    help="llama-cpp, ort-genai, onnxruntime, torch, or 'all' that are installed and load the "
    "artifact. By default the preferred one for its format.",
)
@click.option("--threads", type=click.IntRange(1), help="Default: the physical cores available.")
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
    help="With this adapter active: an .onnx_adapter file, or for torch a PEFT folder.",
)  # fmt: skip
@click.option("--cold", is_flag=True, help="Drop the artifact from the page cache before loading.")
@click.option(
    "--timeout", type=click.FloatRange(1), default=1800.0, show_default=True,
    help="Seconds for one artifact on one runtime.",
)  # fmt: skip
@click.option("--out", type=Path, help="Also write the measurements to this new JSON file.")
@click.option(
    "--on",
    metavar="URL",
    help="Measure on another machine: ssh://user@host[:port][/path/of/edgeadapt/there].",
)
@standard
def command(
    artifacts: tuple[Path, ...],
    runtime: str | None,
    threads: int | None,
    prompt_tokens: int,
    decode_tokens: int,
    repetitions: int,
    context: int | None,
    provider: str | None,
    adapter: Path | None,
    cold: bool,
    timeout: float,
    out: Path | None,
    on: str | None,
    as_json: bool,
) -> None:
    """Measure latency and memory of ARTIFACTs on their runtimes.

    Each one runs in a process of its own: load time, time to first token, prefill and decode
    speed (median, p5 and p95 over repetitions after a warm-up), and peak memory split into
    the process's own and file-backed. Files are read once before a run (warm), unless --cold.

    \b
      edgeadapt bench model.gguf
      edgeadapt bench model.gguf onnx-folder --runtime all --threads 4
    """
    from edgeadapt.bench.run import bench_all
    from edgeadapt.bench.table import render
    from edgeadapt.files import write_json
    from edgeadapt.transports.options import elsewhere

    if out is not None and out.exists():
        raise InputError(f"{out} exists already; choose another --out, or remove it first")
    end_when_asked()
    measurements = (bench_all if on is None else elsewhere(on))(
        artifacts,
        runtime=runtime,
        threads=threads,
        prompt_tokens=prompt_tokens,
        decode_tokens=decode_tokens,
        repetitions=repetitions,
        cold=cold,
        context=context,
        provider=provider,
        adapter=adapter,
        timeout_s=timeout,
    )
    records = [m.model_dump(mode="json") for m in measurements]
    if out is not None:
        write_json(out, records, overwrite=False)
    if as_json:
        emit_json(records)
    else:
        emit(render(measurements))
