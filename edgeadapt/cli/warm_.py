"""`edgeadapt warm`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeadapt.cli.common import end_when_asked, standard
from edgeadapt.console import emit, emit_json

if TYPE_CHECKING:
    from edgeadapt.warm.make import Warmed


@click.command("warm")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--prompt", type=click.Path(path_type=Path), required=True, metavar="FILE",
    help="The system prompt as a text file; or a .json file with a list of chat messages, each "
    "with role and content.",
)  # fmt: skip
@click.option(
    "--adapter", type=click.Path(path_type=Path),
    help="With this adapter active: a .gguf, .onnx_adapter or .safetensors file.",
)  # fmt: skip
@click.option("--runtime", metavar="NAME", help="llama-cpp or onnxruntime.")
@click.option("--threads", type=click.IntRange(1), help="Default: the physical cores available.")
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="FILE",
    help="Name of the .warm.json file. Default: the artifact's, beside it.",
)  # fmt: skip
@standard
def command(
    artifact: Path,
    prompt: Path,
    adapter: Path | None,
    runtime: str | None,
    threads: int | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Run a fixed beginning of all conversations through ARTIFACT, once.

    Writes NAME.warm.json: the messages, their tokens under the chat template,
    and hashes of artifact and adapter; and beside it NAME.warm.state: the KV
    cache after them. `chat --warm` starts there, refuses what was made for
    another model, and computes a state anew that does not fit the library.

    \b
    edgeadapt warm model.gguf --prompt system.txt
    edgeadapt warm base.gguf --adapter lora.gguf --prompt shots.json \\
        --out lora.warm.json
    edgeadapt chat model.gguf --warm model.warm.json
    """
    from edgeadapt.warm.make import make_warm

    end_when_asked()
    made = make_warm(artifact, prompt, out, adapter=adapter, runtime=runtime, threads=threads)
    if as_json:
        emit_json(made.record())
        return
    for line in told(made):
        emit(line)
    words = ["edgeadapt", "chat", str(artifact), "--warm", str(made.path)]
    emit(f"try it: {shlex.join(words + (['--adapter', str(adapter)] if adapter else []))}")


def told(made: Warmed) -> list[str]:
    """What was made, for a person."""
    return [
        f"{made.path}: {len(made.prompt.ids)} tokens that every conversation begins with",
        f"{made.state}: the state after them, {made.state_bytes / 2**20:.1f} MiB",
    ]
