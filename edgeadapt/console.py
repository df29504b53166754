"""What a person sees while work runs: log lines, tables and progress, always on stderr.

Results go to stdout through `emit`; everything else is commentary and stays off it, so that
`--json` gives one document to a pipe.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

log = logging.getLogger("edgeadapt")

Advance = Callable[..., None]
"""Call with the number of finished units, and optionally `note=` for a few words beside the bar."""


class _CurrentStderr(logging.Handler):
    """Writes to whatever stderr is now: test runners and notebooks replace it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        print(self.format(record), file=sys.stderr, flush=True)  # noqa: T201


def set_verbosity(level: int) -> None:
    """Route log lines to stderr: -1 warnings only, 0 normal, 1 and above everything."""
    handler = _CurrentStderr()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.handlers[:] = [handler]
    log.propagate = False
    log.setLevel({-1: logging.WARNING, 0: logging.INFO}.get(level, logging.DEBUG))


def emit(text: str) -> None:
    """Print a result to stdout."""
    print(text, flush=True)  # noqa: T201


def emit_json(value: Any) -> None:
    """Print a result to stdout as one JSON document."""
    emit(json.dumps(value, indent=2, ensure_ascii=False, default=str))


@contextlib.contextmanager
def progress(title: str, total: float, unit: str = "") -> Iterator[Advance]:
    """Show a bar with an ETA on a terminal, a plain line now and then when piped.

    Yields a function to call with the number of units that were just finished.
    """
    if log.getEffectiveLevel() > logging.INFO:
        yield lambda amount=1.0, note="": None
    elif sys.stderr.isatty():
        with _bar(title, total) as advance:
            yield advance
    else:
        with _lines(title, total, unit) as advance:
            yield advance


@contextlib.contextmanager
def _bar(title: str, total: float) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total, note="")

        def advance(amount: float = 1.0, note: str = "") -> None:
            bar.update(task, advance=amount)
            if note:
                bar.update(task, note=note)

        yield advance


@contextlib.contextmanager
def _lines(title: str, total: float, unit: str, every_s: float = 10.0) -> Iterator[Advance]:
    start = last = time.monotonic()
    done = 0.0

    def advance(amount: float = 1.0, note: str = "") -> None:
        nonlocal done, last
        done += amount
        now = time.monotonic()
        if now - last >= every_s and 0 < done < total:
            left = (now - start) * (total - done) / done
            log.info(
                "%s: %.0f/%.0f%s, %.0f s left%s",
                title, done, total, f" {unit}" if unit else "", left, f", {note}" if note else "",
            )  # fmt: skip
            last = now

    log.info("%s ...", title)
    yield advance
    log.info("%s: done in %.1f s", title, time.monotonic() - start)
