"""What is read during minutes of work, as it was when that began."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from edgeadapt.errors import ChangedError


class Watched:
    """Files and folders that must stay as they are while they are used.

    What is made of them is named by the hashes that were taken at the beginning, in stages, caches
    and lineage. What is made of other content under such a name would be taken for right for ever
    after.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._known = {path: _states(path) for path in paths}

    def check(self) -> None:
        """See that nothing was changed or removed.

        Raises:
            ChangedError: something was.
        """
        for path, known in self._known.items():
            now = _states(path)
            for file in sorted(known.keys() | now.keys()):
                if file not in now:
                    raise ChangedError(
                        f"{file} was removed while it was used; put it back, then type the same "
                        "command again (a run goes on with --resume)"
                    )
                if known.get(file) != now[file]:
                    raise ChangedError(
                        f"{file} was changed while it was used; type the same command again: what "
                        "is made of it is made anew"
                    )


def _states(path: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of each file."""
    files = [path]
    if path.is_dir():
        files = [Path(place, name) for place, _, names in os.walk(path) for name in names]
    found = {}
    for file in files:
        try:
            stat = file.stat()
        except OSError:  # removed, or a link that leads nowhere
            continue
        found[file] = (stat.st_size, stat.st_mtime_ns)
    return found
