"""Write a bundle as a ZIP archive, and lay one out as a folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from edgeadapt.bundle.container import Container, file_chunks, sums
from edgeadapt.bundle.manifest import Manifest
from edgeadapt.bundle.zip_format import Member, directory, local_header


def write_archive(folder: Path, out: Path) -> None:
    """Store every file below `folder` in a new archive, in the order of their names."""
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    members: list[Member] = []
    with out.open("wb") as archive:
        for name, path in sorted(files.items()):
            with path.open("rb") as file:
                found = sums(file_chunks(file))
                member = Member(name, found.size, found.crc, archive.tell())
                archive.write(local_header(member))
                file.seek(0)
                shutil.copyfileobj(file, archive, 1 << 20)
            members.append(member)
        archive.write(directory(members, archive.tell()))


def lay_out(container: Container, manifest: Manifest, base: Container | None, folder: Path) -> None:
    """Write a bundle's files into an empty folder, those of a delta's base among them.

    Only names that the checked manifest lists are written, and those that belong to it.
    """
    own = container.sizes()
    for name in own:
        _copy(container, name, folder)
    for name in manifest.files:
        if name not in own and base is not None:
            _copy(base, name, folder)


def _copy(container: Container, name: str, folder: Path) -> None:
    place = folder / name
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("xb") as file:
        for chunk in container.chunks(name):
            file.write(chunk)
