"""`edgeadapt chat`."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from edgeadapt.cli.common import provider_option, standard
from edgeadapt.console import emit_json, log
from edgeadapt.errors import InputError

if TYPE_CHECKING:
    from edgeadapt.chat import Conversation

_HINT = "Ctrl-C stops an answer, Ctrl-D or /exit leaves, /reset starts afresh."


@click.command("chat")
@click.argument("artifact", type=Path)
@click.option("--runtime", metavar="NAME", help="Default: the preferred one for the format.")
@click.option(
    "--adapter", type=click.Path(path_type=Path),
    help="With this adapter active: a .gguf or .onnx_adapter file, or for torch a PEFT folder.",
)  # fmt: skip
@click.option(
    "--system", metavar="TEXT",
    help="A system message to begin with. Default: the one of its training; '' for none.",
)  # fmt: skip
@click.option(
    "--warm", type=click.Path(path_type=Path), metavar="FILE",
    help="Start after this .warm.json of `export --warm-prompt` or `edgeadapt warm`.",
)  # fmt: skip
@click.option("--prompt", metavar="TEXT", help="Ask this, print the answer and leave.")
@click.option(
    "--temperature", type=click.FloatRange(0), default=0.0, show_default=True,
    help="0 always takes the most probable token.",
)  # fmt: skip
@click.option(
    "--max-tokens", type=click.IntRange(1), default=512, show_default=True,
    help="Most tokens in an answer.",
)  # fmt: skip
@click.option(
    "--context", type=click.IntRange(16), default=2048, show_default=True,
    help="Tokens of conversation the model sees, if it takes as many; the oldest turns are dropped "
    "beyond it.",
)  # fmt: skip
@click.option("--threads", type=click.IntRange(1), help="Default: the physical cores available.")
@provider_option
@click.option("--seed", type=int, default=0, show_default=True, help="Of the sampling.")
@standard
def command(
    artifact: Path,
    runtime: str | None,
    adapter: Path | None,
    system: str | None,
    warm: Path | None,
    prompt: str | None,
    temperature: float,
    max_tokens: int,
    context: int,
    threads: int | None,
    provider: str | None,
    seed: int,
    as_json: bool,
) -> None:
    """Talk to ARTIFACT, under the chat template that it ships with.

    Answers are streamed. Ctrl-C stops an answer and keeps the conversation; Ctrl-C again, or
    at the prompt, leaves, as Ctrl-D does. Piped in, each line is one turn.

    \b
      edgeadapt chat model.gguf
      edgeadapt chat model.gguf --prompt "What does os.walk do?"
      edgeadapt chat model.gguf --warm model.warm.json
      echo "What does os.walk do?" | edgeadapt chat model.gguf
    """
    from edgeadapt.chat import Conversation
    from edgeadapt.jobs import open_here
    from edgeadapt.warm.start import start_after

    if warm is not None and system is not None:
        raise InputError(
            "--warm begins with the messages that it was made of; leave --system out, or make "
            "another one with edgeadapt warm"
        )
    if system is None and warm is None:
        system = _trained_under(artifact, adapter)
        if system:
            log.info("Under the system message of its training (--system sets another): %s", system)
    session = open_here(
        artifact,
        adapter=adapter,
        runtime=runtime,
        threads=threads,
        provider=provider,
        context=context,
        keeping=warm is not None,
    )
    try:
        if session.capacity < context:
            log.info(
                "The model takes %d tokens, fewer than the context of %d that was asked for; the "
                "oldest turns are dropped beyond these.", session.capacity, context,
            )  # fmt: skip
        conversation = Conversation(
            session,
            context=context,
            system=system,
            warm=None if warm is None else start_after(session, warm, artifact, adapter),
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
        )
        talk = _Talk(conversation, quiet=as_json)
        with contextlib.suppress(KeyboardInterrupt):
            talk.run(_questions(prompt))
        if as_json:
            emit_json({"artifact": str(artifact), "turns": talk.turns})
    finally:
        session.close()


def _trained_under(artifact: Path, adapter: Path | None) -> str | None:
    """The system message that what answers was trained under, if it tells of one."""
    from edgeadapt.adapters.spec import trained_system
    from edgeadapt.artifact import open_artifact
    from edgeadapt.prefix import is_prefix, prefix_system

    if adapter is not None and adapter.is_dir():
        return trained_system(adapter)
    if adapter is not None and is_prefix(adapter):
        return prefix_system(adapter)
    if adapter is not None and adapter.suffix == ".gguf":
        return open_artifact(adapter).system
    found = open_artifact(artifact)
    if found.lineage.get("mode") == "separate":  # one at most of its adapters is active
        beside = found.lineage.get("adapters") or []
        active = [one for one in beside if adapter is not None and one.get("name") == adapter.stem]
        found = replace(found, lineage={"adapters": active})
    return found.system


def _questions(prompt: str | None) -> Iterator[str]:
    """The one given, what is typed at a prompt, or the lines piped in."""
    if prompt is not None:
        yield prompt
    elif sys.stdin.isatty() and sys.stdout.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - gives input() line editing and history

        log.info(_HINT)
        while True:
            try:
                yield input("\n> ")
            except (EOFError, KeyboardInterrupt):
                click.echo()
                return
    else:
        if hasattr(sys.stdin, "reconfigure"):
            sys.stdin.reconfigure(encoding="utf-8", errors="replace")
        yield from sys.stdin


class _Talk:
    """Puts questions to a conversation and prints the answers."""

    def __init__(self, conversation: Conversation, *, quiet: bool) -> None:
        self.turns: list[dict[str, Any]] = []
        self._conversation = conversation
        self._quiet = quiet
        self._interactive = sys.stdin.isatty() and sys.stdout.isatty()

    def run(self, questions: Iterator[str]) -> None:
        for line in questions:
            question = line.strip()
            if question == "/exit":
                return
            if question == "/reset":
                self._conversation.reset()
                log.info("The conversation is forgotten.")
            elif question:
                self._ask(question)

    def _ask(self, question: str) -> None:
        dropped = self._conversation.dropped_turns
        answer = ""
        with _CtrlC() as ctrl_c:
            try:
                for piece in self._conversation.say(question, stop=ctrl_c.pressed):
                    answer += piece
                    self._print(piece)
            except InputError as error:
                if not self._interactive:
                    raise
                log.warning("%s", error)
                return
            finally:
                self._print("\n")
        if ctrl_c.pressed():
            log.info("(stopped)")
        elif self._conversation.cut:
            log.info("(cut here: --max-tokens or --context allows no more)")
        if self._conversation.dropped_turns > dropped:
            count = self._conversation.dropped_turns - dropped
            log.info("(the context is full: the oldest %d turns were dropped)", count)
        self.turns.append({"user": question, "assistant": answer, "stopped": ctrl_c.pressed()})

    def _print(self, text: str) -> None:
        if not self._quiet:
            click.echo(text, nl=False)


class _CtrlC:
    """While an answer runs: the first Ctrl-C is noted, the second interrupts at once."""

    def __init__(self) -> None:
        self._pressed = False

    def pressed(self) -> bool:
        return self._pressed

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if self._pressed:
            raise KeyboardInterrupt
        self._pressed = True

    def __enter__(self) -> _CtrlC:
        self._before = signal.signal(signal.SIGINT, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)
