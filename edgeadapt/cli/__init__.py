"""The command line. Each command is a module of this package, imported only when it is typed."""

from __future__ import annotations

import importlib
from typing import NoReturn, cast

import click

from edgeadapt import __version__

_COMMANDS = {
    "run": "The whole pipeline from one recipe file.",
    "compare": "Methods side by side: cost and benefit on each device.",
    "import": "Turn a GGUF file, a hub id or the built-in model into a Hugging Face folder.",
    "train": "Train an adapter (QLoRA by default) or the full model.",
    "prompt": "Choose a few-shot prompt or retrieve from documents, and see the price.",
    "merge": "Merge an adapter into its base, streamed, as safetensors.",
    "imatrix": "Measure which weights matter on your own text, for low-bit files.",
    "export": "Write a GGUF or ONNX artifact for a device.",
    "inspect": "Say what a base, adapter or artifact is, and what can carry it.",
    "evaluate": "Measure what artifacts lost of the model they were made from, and judge it.",
    "bench": "Measure latency and memory of artifacts on their runtimes.",
    "chat": "Talk to an artifact.",
    "warm": "Run a fixed prompt once, for an artifact to start after.",
    "plan": "What fits a device, how fast it should be, and which to take.",
    "devices": "List, show, check and detect device profiles.",
    "bundle": "Put what a run made into one folder or file for an app team.",
    "verify": "Check that a bundle is whole, unchanged and behaves as it did.",
    "push": "Send a bundle to an OCI registry or a Hugging Face repository.",
    "pull": "Fetch a bundle from there, checked before it gets its name.",
    "setup": "Build and check native libraries for this CPU.",
}


class _LazyGroup(click.Group):
    """Knows every command's one-line help without importing it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"edgeadapt.cli.{cmd_name}_")
        return cast(click.Command, module.command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgeadapt")
def cli() -> None:
    """Put quantized LoRA models on edge devices, and prove that they still say what was trained.

    Start with `edgeadapt run RECIPE`, or step by step: train, export, bench, chat.
    """


def main() -> NoReturn:
    """Run the program; see `edgeadapt --help`."""
    cli(prog_name="edgeadapt")
    raise SystemExit(0)
