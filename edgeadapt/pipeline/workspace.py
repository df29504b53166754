"""Stage folders: done once for the same inputs, and continued or redone after an interruption."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

from edgeadapt import __version__
from edgeadapt.console import log
from edgeadapt.errors import EdgeAdaptError, GateFailure, InputError
from edgeadapt.files import publish_folder, read_json, sha256_json, write_json
from edgeadapt.leftovers import sweep_folder

RECORD = "stage.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class StageResult:
    """A finished stage."""

    folder: Path
    seconds: float
    reused: bool

    def read(self, name: str) -> Any:
        """One of its JSON files."""
        return read_json(self.folder / name)


class Workspace:
    """The folder of one run: finished stages, and the beginnings of the one under way."""

    def __init__(
        self, root: Path, *, resume: bool, check_inputs: Callable[[], None] = lambda: None
    ) -> None:
        self.root = root
        self.resume = resume
        self.check_inputs = check_inputs
        """Raises `InputError` if what the run was given is not what it was."""

    def stage(
        self,
        name: str,
        inputs: dict[str, Any],
        work: Callable[[Path], None],
        *,
        tools: Sequence[str] = (),
        reads_first: bool = False,
    ) -> StageResult:
        """Run `work` in a folder of its own, unless it was done before with the same inputs.

        Args:
            name: of the stage; begins the folder's name.
            inputs: JSON-serializable; everything that determines the result.
            work: fills the folder. After a kill and with `resume` it finds what it left there.
            tools: packages whose versions count as inputs.
            reads_first: long work that has read its inputs soon after it began; what becomes of
                them later does not spoil it.

        Raises:
            EdgeAdaptError: as `work`; after an `InputError` or a failed gate nothing new is left of
                the stage.
        """
        inputs = inputs | {"versions": _versions(tools)}
        key = sha256_json(inputs)[:12]
        folder = self.root / f"{name}-{key}"
        done = _finished(folder)
        if done is not None:
            log.info("%s: done before, in %.1f s", name, done)
            return StageResult(folder, done, reused=True)
        partial = self.root / f".{name}-{key}.partial"
        if partial.exists() and not self.resume:
            log.warning(
                "%s was interrupted: starting it afresh (--resume goes on from there)", name
            )
            shutil.rmtree(partial)
        begun_before = partial.exists()
        partial.mkdir(parents=True, exist_ok=True)
        sweep_folder(partial)
        (partial / RECORD).unlink(missing_ok=True)  # it was killed between this and its new name
        log.info("== %s", name)
        start = time.monotonic()
        try:
            self._do(work, partial, reads_first)
        except (
            InputError,
            GateFailure,
        ):  # the same input would fail again, unless it once went further
            if not begun_before:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        seconds = time.monotonic() - start
        record = {
            "schema_version": SCHEMA_VERSION,
            "name": name,
            "inputs": inputs,
            "seconds": seconds,
            "files": _sizes(partial),
        }
        write_json(partial / RECORD, record)
        publish_folder(partial, folder)
        return StageResult(folder, seconds, reused=False)

    def _do(self, work: Callable[[Path], None], partial: Path, reads_first: bool) -> None:
        self.check_inputs()
        try:
            work(partial)
        except (EdgeAdaptError, OSError) as error:
            try:
                self.check_inputs()
            except InputError as cause:
                raise cause from error
            raise
        if reads_first:
            return
        try:
            self.check_inputs()
        except InputError:
            shutil.rmtree(partial, ignore_errors=True)
            raise


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Hold the folder for one process; the lock goes with the process, however it ends.

    Raises:
        InputError: another process holds it.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        handle = (root / ".lock").open("a+")
    except OSError as error:
        raise InputError(f"cannot write to {root}: {error.strerror or error}") from error
    with handle:
        try:
            _lock(handle)
        except BlockingIOError as error:
            handle.seek(0)
            raise InputError(
                f"another edgeadapt run (process {handle.read().strip() or 'unknown'}) is working "
                f"in {root}; wait for it, or choose another name in the recipe"
            ) from error
        handle.truncate(0)
        handle.write(f"{os.getpid()}\n")
        handle.flush()
        yield


def _lock(handle: TextIO) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: two runs of one name are the user's to keep apart
        return
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _versions(tools: Sequence[str]) -> dict[str, str]:
    found = {"edgeadapt": __version__}
    for name in tools:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _sizes(folder: Path) -> dict[str, int]:
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _finished(folder: Path) -> float | None:
    """Seconds the stage took, if its folder is there with all its files."""
    if not folder.is_dir():
        return None
    try:
        record = read_json(folder / RECORD)
        expected, seconds = record["files"], float(record["seconds"])
    except (EdgeAdaptError, KeyError, TypeError, ValueError):
        expected, seconds = None, 0.0
    actual = {name: size for name, size in _sizes(folder).items() if name != RECORD}
    if expected == actual:
        return seconds
    log.warning("%s was changed since it was made; doing it again", folder.name)
    return None
