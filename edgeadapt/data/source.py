"""What `--data` may name: a path, or a dataset that comes with edgeadapt."""

from __future__ import annotations

import hashlib
import shutil
import sys
import uuid
from pathlib import Path

from edgeadapt.data import pydocs
from edgeadapt.errors import InputError
from edgeadapt.files import cache_dir

BUILT_IN = ("python-docs", "pydocs")
GENERAL = "general"
"""48 questions of everyday knowledge with short answers, written for edgeadapt: what a model should
still know after it was taught something else."""


def held_out_part(spec: str) -> Path:
    """The data that a spec names to measure on: the held-out part where it brings one, else all.

    Raises:
        InputError: nothing is there.
    """
    data, brought = resolve_data(spec)
    return brought or data


def resolve_data(spec: str) -> tuple[Path, Path | None]:
    """The training data that a spec names, and the held-out data that comes with it, if any.

    `python-docs` is built into the cache once for each Python version.

    Args:
        spec: a file or folder, `python-docs` or `general`.

    Raises:
        InputError: nothing is there.
    """
    if spec == GENERAL and not Path(spec).exists():
        return Path(__file__).with_name("general.jsonl"), None
    if spec not in BUILT_IN:
        path = Path(spec).expanduser()
        if not path.exists():
            raise InputError(
                f"the dataset {spec} does not exist; expected a .jsonl, .csv or .parquet file, "
                f"a folder, or {BUILT_IN[0]!r}"
            )
        return path, None
    # The content follows the Python and this recipe of making it, so both name the folder.
    recipe = Path(pydocs.__file__).read_bytes() + f"{sys.version} {sys.prefix}".encode()
    folder = cache_dir() / "data" / f"python-docs-{hashlib.sha256(recipe).hexdigest()[:16]}"
    if not folder.is_dir():
        building = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
        try:
            pydocs.build_pydocs(building)
            building.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster, with the same content
                raise
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return folder / pydocs.TRAIN, folder / pydocs.HELD_OUT
