"""Which file names a bundle may hold: the same file on every system, and never outside a folder."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from edgeadapt.errors import CorruptFileError

MOST_FILES = 10_000
LONGEST_NAME = 512
_LONGEST_PART = 200
_DEEPEST = 12
_FORBIDDEN = frozenset('<>:"\\|?*')
"""What Windows does not allow in a name, and what there separates folders."""
_DEVICES = frozenset(
    ["con", "prn", "aux", "nul", *(f"{kind}{n}" for kind in ("com", "lpt") for n in range(10))]
)
"""Names that Windows takes for devices, whatever follows the first dot."""


def check_name(name: str) -> str:
    """See that a name is relative, stays inside and means the same file everywhere.

    Raises:
        CorruptFileError: it does not.
    """
    problem = _problem(name)
    if problem:
        raise CorruptFileError(f"the bundle names a file {name[:80]!r}, which {problem}")
    return name


def _problem(name: str) -> str | None:
    if not name or len(name.encode("utf-8", "surrogatepass")) > LONGEST_NAME:
        return f"is empty or longer than {LONGEST_NAME} bytes"
    if name.startswith("/"):
        return "is absolute; expected a relative path"
    if unicodedata.normalize("NFC", name) != name:
        return "is not in Unicode's normal form C"
    parts = name.split("/")
    if len(parts) > _DEEPEST:
        return f"is more than {_DEEPEST} folders deep"
    return next((found for part in parts if (found := _problem_of_part(part))), None)


def _problem_of_part(part: str) -> str | None:
    if part in ("", ".", ".."):
        return "leaves its folder or has an empty part; expected a plain relative path"
    if any(c in _FORBIDDEN or unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl") for c in part):
        return "has a character that some system does not allow"
    if part[-1] in " ." or part.split(".")[0].lower().strip() in _DEVICES:
        return "Windows cannot hold"
    if len(part.encode()) > _LONGEST_PART:
        return f"has a part longer than {_LONGEST_PART} bytes"
    return None


def check_names(names: Iterable[str]) -> None:
    """See that names are fit for one folder, also where capital letters do not count.

    Raises:
        CorruptFileError: one is not fit, two are the same file, or one is also a folder.
    """
    seen: dict[str, str] = {}
    for name in names:
        key = check_name(name).casefold()
        if key in seen:
            raise CorruptFileError(
                f"the bundle names both {seen[key]!r} and {name!r}, which are one file where "
                "capital letters do not count"
            )
        seen[key] = name
        if len(seen) > MOST_FILES:
            raise CorruptFileError(f"the bundle names more than {MOST_FILES} files")
    for key, name in seen.items():
        parts = key.split("/")
        for depth in range(1, len(parts)):
            if "/".join(parts[:depth]) in seen:
                raise CorruptFileError(f"the bundle names {name!r}, whose folder is a file in it")
