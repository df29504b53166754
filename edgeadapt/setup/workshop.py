"""A folder in which one of llama.cpp's own programs is compiled, from the archive of its source."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeadapt.files import cache_dir
from edgeadapt.setup import build


@dataclass(frozen=True)
class Workshop:
    """Where a build works; see `workshop`."""

    scratch: Path
    """Kept while a build fails or is interrupted, to go on there."""
    source: Path
    """llama.cpp's own folder in the archive."""
    lock: int | None

    def compile(
        self, recipe: Path, options: Mapping[str, str], targets: tuple[str, ...], what: str
    ) -> None:
        """Configure and build with cmake, in `scratch/cmake`.

        Args:
            recipe: folder of the CMakeLists.txt; told of `source` as SOURCE.
            options: further cache entries for cmake.
            targets: what to build.
            what: how messages call it.

        Raises:
            RuntimeFailure: it failed; names the log file.
        """
        made = str(self.scratch / "cmake")
        ninja = ("-G", "Ninja") if shutil.which("ninja") else ()
        settings = (f"-D{k}={v}" for k, v in {"SOURCE": self.source, **options}.items())
        jobs = str(build.jobs())
        configure = ("cmake", *ninja, "-S", str(recipe), "-B", made, *settings)
        make = ("cmake", "--build", made, "--parallel", jobs, "--target", *targets)
        log_file = self.scratch.parent / f"{self.scratch.name}.log"
        for command in (configure, make):
            build.run_with_progress(command, dict(os.environ), log_file, self.lock, what)


@contextlib.contextmanager
def workshop(name: str, version: str) -> Iterator[Workshop]:
    """A build folder in the cache for one process at a time, removed after success.

    Args:
        name: of the folder.
        version: of llama-cpp-python, whose archive holds llama.cpp.

    Raises:
        RuntimeFailure: the archive could not be fetched.
    """
    scratch = cache_dir() / "build" / name
    scratch.mkdir(parents=True, exist_ok=True)
    with build.one_at_a_time(scratch.parent / f"{name}.lock") as lock:
        source = build.unpacked_source(version, scratch) / "vendor" / "llama.cpp"
        yield Workshop(scratch, source, lock)
    shutil.rmtree(scratch, ignore_errors=True)
