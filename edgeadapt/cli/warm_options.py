"""`--warm-prompt` of `edgeadapt export`, and what it stands for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgeadapt.artifact import Artifact
    from edgeadapt.export import ModelToExport
    from edgeadapt.planner.warm import FirstToken
    from edgeadapt.warm.make import Warmed

warm_option = click.option(
    "--warm-prompt", type=click.Path(path_type=Path), metavar="FILE",
    help="Run this prompt once (a text file, or a .json list of messages), for `chat --warm` to "
    "start after: NAME.warm.json and NAME.warm.state beside --out. See edgeadapt warm.",
)  # fmt: skip


@dataclass
class WarmWish:
    """A warm prompt to be made with an export, if one was asked for."""

    prompt: Path | None
    out: Path
    """Of the export."""
    threads: int | None
    done: Warmed | None = field(default=None, init=False)

    def check(self) -> None:
        """See, before minutes of work, that it can be read and its files written.

        Raises:
            InputError: they cannot.
        """
        from edgeadapt.warm.make import check_before

        if self.prompt is not None:
            check_before(self.prompt, self.out)

    def check_runtime(self, format: str) -> None:
        """See, as early, that a runtime here can run it.

        Raises:
            UnsupportedError: none that loads the format keeps states.
            MissingExtraError: none is installed.
        """
        from edgeadapt.runtimes.registry import installed_runtimes, keeping_state

        if self.prompt is not None:
            keeping_state(installed_runtimes(format))

    @contextlib.contextmanager
    def after(
        self, check: Callable[[Artifact], None] | None
    ) -> Iterator[Callable[[Artifact], None] | None]:
        """Give the `check` for an export that makes it, if `check` is content; at the end its files
        get their names."""
        from edgeadapt.warm.make import warming
        from edgeadapt.warm.prompt import warm_files

        if self.prompt is None:
            yield check
            return
        files = warm_files(self.out)
        with warming(self.prompt, files, threads=self.threads, first=check) as made:
            yield made
        self.done = made.done

    def foretold(
        self, device: str | None, model: ModelToExport, artifact: Artifact
    ) -> FirstToken | None:
        """What it should save on a device."""
        if device is None or self.done is None:
            return None
        from edgeadapt.devices import load_profile
        from edgeadapt.planner.sizes import facts_of
        from edgeadapt.planner.warm import first_token

        profile = load_profile(device)
        runtime = next(r for r in profile.runtimes if r.format == artifact.format)
        return first_token(
            profile, facts_of(model), runtime, artifact.quantization,
            size_bytes=artifact.size_bytes, tokens=len(self.done.prompt.ids),
        )  # fmt: skip
