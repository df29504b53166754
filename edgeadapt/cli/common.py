"""What commands share: --json, -q, -v, --debug, options of models, and how errors meet people."""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, cast

import click

from edgeadapt import console
from edgeadapt.errors import EdgeAdaptError, GateFailure

if TYPE_CHECKING:
    from edgeadapt.export import ModelToExport

# Merging is many small products spread over our own threads: a BLAS that starts threads of its
# own for each is several times slower. Read once, when NumPy is first imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def standard(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the standard options and turn every failure into one sentence and an exit code.

    The wrapped function receives `as_json: bool`; `-q`, `-v` and `--debug` are dealt with here.
    """

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
    @click.option("-q", "--quiet", is_flag=True, help="Warnings and results only.")
    @click.option("-v", "--verbose", is_flag=True, help="Say more on stderr.")
    @click.option("--debug", is_flag=True, help="Say everything, and show tracebacks.")
    @functools.wraps(function)
    def wrapper(*args: Any, quiet: bool, verbose: bool, debug: bool, **kwargs: Any) -> Any:
        console.set_verbosity(-1 if quiet else int(verbose or debug))
        try:
            return function(*args, **kwargs)
        except BrokenPipeError as error:  # the reader, `head` say, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise click.exceptions.Exit(0) from error
        except (EdgeAdaptError, OSError, MemoryError) as error:
            if kwargs["as_json"] and isinstance(error, GateFailure) and error.record:
                console.emit_json(error.record)
            _fail(error, debug)
        except KeyboardInterrupt as error:
            raise click.exceptions.Exit(130) from error

    return wrapper


def model_options(*, adapter_required: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add --base, --adapter, --revision and --any-base."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in (
            click.option("--any-base", is_flag=True, help="Merge even if trained on another base."),
            click.option("--revision", help="Branch, tag or commit of a hub id."),
            click.option(
                "--adapter",
                multiple=True,
                required=adapter_required,
                metavar="DIR[=WEIGHT]",
                help="PEFT adapter folder. Given more than once, adapters are merged one after "
                "the other; with weights (a=0.7, LoRA only), as their exact weighted sum, which "
                'PEFT calls the combination type "cat".',
            ),
            click.option(
                "--base",
                required=True,
                help="Model folder, GGUF file, hub id, or `default`.",
            ),
        ):
            function = option(function)
        return function

    return add


@dataclass(frozen=True)
class MergeOptions:
    """What the options of `merge_options` say."""

    onto: str
    held_out: str | None
    examples: int | None
    trained_on: str | None
    max_ratio: float

    def open(
        self, base: str, adapter: tuple[str, ...], revision: str | None, any_base: bool
    ) -> ModelToExport:
        """The base with the adapters merged onto the weights that were asked for, or are better.

        Raises:
            EdgeAdaptError: as `open_measured`.
        """
        from edgeadapt.data.source import held_out_part
        from edgeadapt.fidelity.merge_base import MergeSettings, open_measured

        settings = MergeSettings(cast(Any, self.onto), self.trained_on, self.max_ratio)
        return open_measured(
            base,
            adapter,
            settings,
            held_out=held_out_part(self.held_out) if self.held_out else None,
            examples=self.examples,
            revision=revision,
            any_base=any_base,
        )


def merge_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --merge-onto and what belongs to it; the function receives `merging: MergeOptions`."""

    @click.option(
        "--merge-onto",
        type=click.Choice(["auto", "original", "quantized"]),
        default="auto",
        show_default=True,
        help="The base's original weights, or as QLoRA held them in 4 bits while training; auto: "
        "what is better on --held-out data, without it original.",
    )
    @click.option("--held-out", metavar="DATA", help="Data to compare merges and live model on.")
    @click.option(
        "--held-out-examples", type=click.IntRange(min=2), default=64, show_default=True,
        help="Most examples of it.",
    )  # fmt: skip
    @click.option(
        "--trained-on",
        metavar="FORMAT",
        help="How training held the base, for adapters of other tools: nf4, nf4-double (QLoRA's), "
        "fp4, fp4-double or none.",
    )
    @click.option(
        "--max-merge-ratio", type=click.FloatRange(min=0), default=1.02, show_default=True,
        help="Held-out perplexity of the merged model over the live one's; above it, nothing is "
        "written.",
    )  # fmt: skip
    @functools.wraps(function)
    def wrapper(
        *args: Any,
        merge_onto: str,
        held_out: str | None,
        held_out_examples: int,
        trained_on: str | None,
        max_merge_ratio: float,
        **kwargs: Any,
    ) -> Any:
        merging = MergeOptions(merge_onto, held_out, held_out_examples, trained_on, max_merge_ratio)
        return function(*args, merging=merging, **kwargs)

    return wrapper


provider_option = click.option(
    "--provider",
    metavar="NAME",
    help="What computes an ONNX graph: cpu (the default), xnnpack, qnn, nnapi, cuda, tensorrt, "
    "coreml, directml, where the installed onnxruntime has it.",
)


def end_when_asked() -> None:
    """Let SIGTERM unwind like an error does, so that half-written files are removed."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def _fail(error: BaseException, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exception(error)
    if isinstance(error, MemoryError):
        text = "this machine ran out of memory"
    elif isinstance(error, OSError):
        text = f"{error.filename or 'the system'}: {error.strerror or error}"
    else:
        text = str(error)
    click.echo(f"Error: {text}", err=True)
    raise click.exceptions.Exit(getattr(error, "exit_code", 2)) from error
